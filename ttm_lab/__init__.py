"""Knowledge distillation by Transformed Teacher Matching: losses, training, entropy analysis.

Import what you need from the module that holds it, for example::

    from ttm_lab.losses import wttm_loss
    from ttm_lab.training import Settings, distill

The course in ``notebooks/`` teaches each function; its docstring names the notebook.
"""

__version__ = "0.1.0"
