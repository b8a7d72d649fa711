"""Image data by name, split into train, validation and test parts."""

from ttm_lab.data.sources import load_dataset
from ttm_lab.data.splits import Dataset, FileSplit, Split

__all__ = ["Dataset", "FileSplit", "Split", "load_dataset"]
