"""Makes ``TTMLoss`` and ``WTTMLoss`` known to torchdistill's configuration files.

They name this module under ``dependencies``.
"""

from torchdistill.losses.registry import register_low_level_loss

from ttm_lab.losses import TTMLoss, WTTMLoss

for loss in (TTMLoss, WTTMLoss):
    register_low_level_loss(loss)
