"""A run's folder: identity, atomic writes, checkpoints, resume.

A run folder holds ``config.json`` (everything that decides the result), ``environment.json``
(versions, hardware, git state; outside the identity), ``metrics.csv`` (a row an epoch),
``model.safetensors`` (written last: its presence says that the run is finished), and while it
runs ``checkpoint/`` with the last two resume states.
"""

import errno
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import warnings
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from io import BytesIO
from pathlib import Path

import filelock
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save as safetensors_bytes

from ttm_lab import distributed
from ttm_lab.models import load_weights
from ttm_lab.paths import FileLock, find_root

_TRAINING_CODE = (
    "probability.py",
    "losses.py",
    "data/*.py",
    "models/*.py",
    "distributed.py",
    "memory.py",
    "training.py",
)


def runs_folder(experiment: str) -> Path:
    """Where an experiment's runs live: ``$TTM_LAB_RUNS/<experiment>``, else ``<root>/runs/...``."""
    base = os.environ.get("TTM_LAB_RUNS")
    return (Path(base) if base else find_root() / "runs") / short(experiment)


def short(name: str) -> str:
    """A name that leaves room for endings: file systems take 255 bytes."""
    return name.encode(errors="ignore")[:150].decode(errors="ignore")


def atomic_write(path: str | Path, data: bytes | str) -> None:
    """Write a whole file or nothing: temporary file, fsync, rename."""
    path = Path(path)
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
    finally:
        part.unlink(missing_ok=True)
    if os.name == "posix":  # make the new name itself survive a power cut
        with suppress(OSError):  # which some file systems refuse for a folder
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def read_table(path) -> pd.DataFrame:
    """A CSV file as a frame, every number exactly as it was written."""
    # pandas below 3.1 rounds the last digit unless asked not to; from 3.1 on asking is deprecated
    old = tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1)
    return pd.read_csv(path, **({"float_precision": "round_trip"} if old else {}))


def identity(config: dict) -> str:
    """Twelve hexadecimal digits that two runs share exactly when their configs are equal."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def weights_fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 over a network's structure (its printed form) and its weights.

    A plain attribute that the printed form does not show is not seen.
    """
    digest = hashlib.sha256(repr(model).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@cache
def code_fingerprint() -> str:
    """SHA-256 over the package's training code, so that changed code never reuses old runs."""
    digest = hashlib.sha256()
    for pattern in _TRAINING_CODE:
        for file in sorted(Path(__file__).parent.glob(pattern)):
            digest.update(file.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()


@cache
def environment() -> dict:
    """Versions, hardware and git state of this process, for the record."""

    def git(*words: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    packages = ("ttm-lab", "torch", "torchvision", "numpy", "pandas", "scipy", "scikit-learn")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([_program(), *sys.argv[1:]]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "processes": distributed.started(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "git_commit": git("rev-parse", "HEAD"),
        "git_changed": None if changed is None else bool(changed),
        "packages": {name: _version(name) for name in packages},
    }


def _program() -> str:
    """How this process was called, without the folders of this machine."""
    path = Path(sys.argv[0])
    return "ttm-lab" if path.name == "__main__.py" else path.name


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


class Run:
    """One run's folder, named ``<label>-<identity>``; the same config always gives the same one.

    Use it as a context manager while writing: it holds a lock that the system releases when the
    process dies, so two processes never write one run.
    """

    def __init__(self, experiment: str | Path, label: str, config: dict):
        self.config, self.label = config, label
        self.folder = Path(experiment) / f"{short(label)}-{identity(config)}"
        self._lock = FileLock(self.folder / ".lock")

    def __enter__(self) -> "Run":
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            print(f"waiting for another process that writes {self.folder}", file=sys.stderr)
            self._lock.acquire()
        for part in self.folder.rglob(".*.part"):  # left by a process that was killed
            part.unlink(missing_ok=True)
        for name, content in (
            ("config.json", lambda: self.config),
            ("environment.json", environment),
        ):
            path = self.folder / name
            if not path.exists() or not path.stat().st_size:
                atomic_write(path, json.dumps(content(), indent=1))
        return self

    def __exit__(self, *_error) -> None:
        self._lock.release()

    @property
    def finished(self) -> bool:
        return (self.folder / "model.safetensors").exists()

    def finish(self, model: torch.nn.Module, history: pd.DataFrame) -> None:
        """Write the history, then the weights with the history's hash; drop the checkpoints."""
        # repr of a float64 has 17 digits at most, so the numbers come back bit by bit
        table = history.to_csv(index=False).encode()
        atomic_write(self.folder / "metrics.csv", table)
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        note = {"metrics_sha256": hashlib.sha256(table).hexdigest()}
        atomic_write(self.folder / "model.safetensors", safetensors_bytes(state, note))
        shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)

    def load(self, model: torch.nn.Module) -> pd.DataFrame:
        """Load a finished run's weights into ``model`` and return its history.

        Raises ``ValueError`` naming the folder where a file is damaged.
        """
        try:
            load_weights(model, self.folder / "model.safetensors")
            with safe_open(self.folder / "model.safetensors", "pt") as file:
                wanted = (file.metadata() or {}).get("metrics_sha256")
            found = hashlib.sha256((self.folder / "metrics.csv").read_bytes()).hexdigest()
            if found != wanted:
                raise ValueError("metrics.csv is not the one that was written with the weights")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the run {self.folder} is damaged ({error}); delete that folder, and it is "
                "trained again"
            ) from error
        shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)  # left by a killed process
        return read_table(self.folder / "metrics.csv")

    def _checkpoints(self) -> list[Path]:
        return sorted((self.folder / "checkpoint").glob("step-*.pt"))

    def save_checkpoint(self, step: int, state: dict) -> None:
        """Keep ``state`` as the resume point after ``step`` steps, and the one before it."""
        buffer = BytesIO()
        torch.save({"identity": identity(self.config), **state}, buffer)
        atomic_write(self.folder / "checkpoint" / f"step-{step:09d}.pt", buffer.getvalue())
        for old in self._checkpoints()[:-2]:
            old.unlink()

    def load_checkpoint(self) -> dict | None:
        """The newest whole checkpoint of this run, or None where there is none.

        A damaged file is named in a warning and the one before it is taken. Raises
        ``ValueError`` if files are there and none can be read.
        """
        files = self._checkpoints()
        for file in reversed(files):
            try:
                state = torch.load(file, map_location="cpu", weights_only=True)
            except Exception as error:
                warnings.warn(f"damaged checkpoint {file}: {error}", stacklevel=2)
                continue
            if not isinstance(state, dict) or state.get("identity") != identity(self.config):
                warnings.warn(f"{file} belongs to another run; not used", stacklevel=2)
                continue
            return state
        if files:
            raise ValueError(
                f"no checkpoint in {files[0].parent} can be read; delete that folder to start over"
            )
        return None
