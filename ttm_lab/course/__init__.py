"""The course's own code: figures, explorers, the digits study, claims and the batch.

It imports the library; the library never imports it.
"""
