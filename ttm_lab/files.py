"""Files and folders, without importing torch: roots, locks, atomic writes, tables."""

import errno
import os
from contextlib import suppress
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


def runs_folder(experiment: str) -> Path:
    """Where an experiment's runs live: ``$TTM_LAB_RUNS/<experiment>``, else ``<root>/runs/...``."""
    base = os.environ.get("TTM_LAB_RUNS")
    return (user_path(base) if base else find_root() / "runs") / folder_name(experiment)


def folder_name(name: str) -> str:
    """A name for a folder just below another, cut where it is long: file systems take 255 bytes.

    Names come from data sets and files. Raises ``ValueError`` for one that leads elsewhere.
    """
    if name in ("", ".", "..") or any(c in name for c in "/\\\0"):
        raise ValueError(f"{name!r} cannot name a folder: it must be one name, without / or \\")
    return short(name)


def short(name: str) -> str:
    """A name that leaves room for endings: file systems take 255 bytes."""
    return name.encode(errors="ignore")[:150].decode(errors="ignore")


def atomic_write(path: str | Path, data: bytes | str) -> None:
    """Write a whole file or nothing: temporary file, fsync, rename."""
    path = user_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{short(path.name)}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            try:
                os.fsync(file.fileno())
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
                    raise  # a full or failing disk; the others are file systems without fsync
        os.replace(part, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say whose
        raise
    finally:
        part.unlink(missing_ok=True)
    with suppress(OSError):  # which Windows and some file systems refuse for a folder
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # the new name itself shall survive a power cut
        finally:
            os.close(descriptor)


def read_table(path):
    """A CSV file (or its open bytes) as a frame, every number exactly as it was written."""
    import pandas as pd  # takes half a second, and few need it

    # pandas below 3.1 rounds the last digit unless asked not to; from 3.1 on asking is deprecated
    old = tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1)
    return pd.read_csv(path, **({"float_precision": "round_trip"} if old else {}))
