"""``python -m ttm_lab`` is the same as the command ``ttm-lab``."""

import sys

from ttm_lab.course.cli import main

sys.exit(main())
