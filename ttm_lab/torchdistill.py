"""Makes ``TTMLoss`` and ``WTTMLoss`` known to torchdistill's configuration files.

They name this module under ``dependencies``.
"""

from contextlib import suppress

from ttm_lab.losses import TTMLoss, WTTMLoss

with suppress(ImportError):  # where torchdistill is absent there is nothing to do
    from torchdistill.losses.registry import register_low_level_loss

    for loss in (TTMLoss, WTTMLoss):
        register_low_level_loss(loss)
