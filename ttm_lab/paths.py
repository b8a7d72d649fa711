"""Where the checkout lies, and where big data goes."""

import os
from pathlib import Path

import filelock


class FileLock(filelock.FileLock):
    """One writer at a time; a file system that has no locks is named, with the way out."""

    def acquire(self, *arguments, **options):
        try:
            return super().acquire(*arguments, **options)
        except filelock.Timeout:
            raise
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"{self.lock_file} cannot be locked ({error}): choose a folder on another disk, "
                "for runs with TTM_LAB_RUNS, for downloads with TTM_LAB_DATA"
            ) from error


def user_path(path: str | os.PathLike) -> Path:
    """A path as its user wrote it, in which ``~`` is the home folder, or ``~name`` that of another.

    No shell expands it in an environment variable, behind ``=``, or in Python.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # pathlib's word for an unknown user
        raise ValueError(f"{path}: {error}; write the whole path, or ./{path}") from error


def find_root(start: str | Path | None = None) -> Path:
    """The checkout that holds ``start`` (default: the working folder), else that folder itself."""
    start = user_path(start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "notebooks").is_dir() and (folder / "ttm_lab").is_dir():
            return folder
    return start


def downloads_folder() -> Path:
    """Where downloaded data goes: ``$TTM_LAB_DATA``, else ``<root>/data/downloads``."""
    base = os.environ.get("TTM_LAB_DATA")
    return user_path(base) if base else find_root() / "data" / "downloads"
