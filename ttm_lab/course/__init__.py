"""The course's own code: figures, explorers, the digits study, claims and the batch.

It imports the library; the library never imports it.
"""

import sys

# jsonschema, which nbformat imports, compiles a grammar of internationalised addresses: a second
# of every process that reads a notebook. No notebook's schema asks for it, and without that
# package jsonschema leaves only this check of a format out.
sys.modules.setdefault("rfc3987_syntax", None)
