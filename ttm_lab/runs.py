"""A run's folder: identity, atomic writes, checkpoints, resume.

A run folder holds ``config.json`` (everything that decides the result), ``environment.json``
(versions, hardware, git state; outside the identity), ``metrics.csv`` (a row an epoch),
``model.safetensors`` (written last: its presence says that the run is finished; it also carries
the run's identity and the checksums of its weights and of ``metrics.csv``), and while it runs
``checkpoint/`` with the last two resume states, each with its checksum behind it.
"""

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import filelock
import pandas as pd
import torch
from safetensors.torch import save as safetensors_bytes
from torch import nn

from ttm_lab import __version__, distributed
from ttm_lab.files import FileLock, atomic_write, folder_name, read_table, user_path
from ttm_lab.models import load_weights
from ttm_lab.models.weights import read_notes, weights_sha256


def identity(config: dict) -> str:
    """Twelve hexadecimal digits that two runs share exactly when their configs are equal."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 over a network's structure and its weights.

    The structure is its printed form: plain attributes that it does not print are left out.
    """
    return weights_sha256(model.state_dict(), repr(model))


# Fields of ``Settings`` that were called otherwise when the first runs were written. A config keeps
# the old names, since they are part of the run's identity.
OLD_NAMES = {"optimiser": "optimizer", "milestones": "decay_at"}


def new_column(name: str) -> str:
    """The present name of a history's column: the divergence was once called a distance."""
    return name.replace("distance", "divergence")


def read_config(folder: str | Path) -> dict:
    """A finished run's ``config.json``: settings (by today's names), seed, data and more.

    It is held against the notes that were written with the weights; a run from before there were
    such notes is read as it is. Raises ``ValueError`` naming the file and the remedy where it is
    missing, damaged, or another run's, and ``FileNotFoundError`` where there are no weights.
    """
    path, notes = Path(folder) / "config.json", read_notes(Path(folder) / "model.safetensors")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if notes.get("run") not in (None, identity(config)):
            raise ValueError("it is not that of the weights beside it")
        match config:
            case {
                "settings": {"model": str(), "method": str() | dict()},
                "data": {"name": str(), "seed": int(), "sha256": str()},
                "seed": int(),
            }:
                pass
            case _:
                raise ValueError("it lacks model, method, seed or data")
        settings = {OLD_NAMES.get(name, name): value for name, value in config["settings"].items()}
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    return config | {"settings": settings}


def load_finished(folder: str | Path, model: nn.Module) -> tuple[dict, pd.DataFrame, dict]:
    """Load a finished run's weights into ``model``; its config, history, and notes on the weights.

    Config (``read_config``) and history are held against the notes. Raises ``ValueError`` naming
    the file that is missing, damaged, or of another run, and ``FileNotFoundError`` where there are
    no weights.
    """
    path, metrics = Path(folder) / "model.safetensors", Path(folder) / "metrics.csv"
    config, notes = read_config(folder), read_notes(path)
    load_weights(model, path)
    try:
        table = metrics.read_bytes()
        wanted = notes.get("metrics_sha256", "" if "run" in notes else None)
        if wanted not in (None, hashlib.sha256(table).hexdigest()):
            raise ValueError("it is not the one that was written with the weights")
        return config, read_table(BytesIO(table)).rename(columns=new_column), notes
    except (OSError, ValueError) as error:
        raise _damaged(metrics, error) from error


def _damaged(path: Path, reason) -> ValueError:
    return ValueError(
        f"{path} is missing, damaged or no run's ({str(reason).strip()}): train the run again, or "
        "give its model.safetensors as a file of weights"
    )


@cache
def environment() -> dict:
    """Versions, hardware and git state of this process, for the record."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40"]
    command += ["--exclude=*", "--dirty"]  # the commit's number, not the nearest tag's name
    options = {"capture_output": True, "text": True, "timeout": 10, "check": True}
    try:
        commit, _, changed = subprocess.run(command, **options).stdout.strip().partition("-")
    except (OSError, subprocess.SubprocessError):  # no git, or not in a checkout
        commit = changed = None
    packages = ("torch", "torchvision", "numpy", "pandas", "scipy", "scikit-learn")
    program = Path(sys.argv[0]).name  # without the folders of this machine
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["ttm-lab" if program == "__main__.py" else program, *sys.argv[1:]]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "processes": distributed.world_size(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "git_commit": commit,
        "git_changed": commit and bool(changed),
        "packages": {"ttm-lab": __version__} | {name: version(name) for name in packages},
    }


def name_old_runs(folder: str | Path) -> None:
    """Say once which runs an earlier version left, whose identity held the bytes of its source."""
    configs = user_path(folder).glob("*/config.json")
    old = [p.parent.name for p in configs if b'"training_code"' in p.read_bytes()]
    if old and distributed.rank() == 0:
        print(
            f"ttm-lab: note: {len(old)} runs in {folder}, such as {old[0]}, were made by an "
            "earlier version and are not used; delete them when you need the room",
            file=sys.stderr,
        )


class Run:
    """One run's folder, named ``<label>-<identity>``; the same config always gives the same one.

    Use it as a context manager while writing: it holds a lock that the system releases when the
    process dies, so two processes never write one run.
    """

    def __init__(self, experiment: str | Path, label: str, config: dict):
        self.config = config
        self.folder = user_path(experiment) / f"{folder_name(label)}-{identity(config)}"
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
        self._describe(new=True)
        return self

    def _describe(self, new: bool = False) -> None:
        """Write ``config.json`` where it is missing or damaged, and ``environment.json``.

        This process knows both, so a run is not lost with them. A warning says that ``config.json``
        is written anew, unless the run is ``new``, and where the run was made or begun otherwise:
        torch and hardware decide the last bits of its numbers, and are no part of its identity.
        """
        path, wanted = self.folder / "config.json", json.dumps(self.config, indent=1).encode()
        there = path.read_bytes() if path.exists() else b""
        if there != wanted:
            if there or not new:
                what = "damaged" if there else "deleted"
                warnings.warn(f"{path} was {what}; it is written anew", stacklevel=3)
            atomic_write(path, wanted)
        path, here = self.folder / "environment.json", environment()
        words = "torch {packages[torch]} on {processor}, GPU: {gpu}"
        made = now = words.format(**here)
        if path.exists():
            with suppress(ValueError, LookupError, TypeError):  # damaged: nothing depends on it
                there = json.loads(path.read_bytes())
                made = words.format(**there)
                here = here | {"before": [*there.pop("before", []), there]}
        if made != now:
            where = self.folder.parent
            warnings.warn(f"runs in {where} were made by {made}, this is {now}", stacklevel=3)
        if (made != now or not path.exists()) and not self.finished:
            atomic_write(path, json.dumps(here, indent=1))

    def __exit__(self, *_error) -> None:
        self._lock.release()

    @property
    def finished(self) -> bool:
        """Whether the run is: the one rule that everybody asks."""
        return (self.folder / "model.safetensors").exists()

    def finish(self, model: nn.Module, history: pd.DataFrame, objective: nn.Module) -> None:
        """Write the history, then the weights with all checksums; drop the checkpoints.

        An objective's trained parts, if it has any, go to ``objective.safetensors``.
        """
        self._describe()
        # repr of a float64 has 17 digits at most, so the numbers come back bit by bit
        table = history.to_csv(index=False).encode()
        atomic_write(self.folder / "metrics.csv", table)
        if objective.state_dict():
            self._write_weights("objective", objective)
        checksum = hashlib.sha256(table).hexdigest()
        self._write_weights("model", model, metrics_sha256=checksum)
        shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)

    def _write_weights(self, name: str, module: nn.Module, **notes: str) -> None:
        state = {key: tensor.contiguous() for key, tensor in module.state_dict().items()}
        notes = {"run": identity(self.config), "weights_sha256": weights_sha256(state)} | notes
        content = safetensors_bytes(state, {"ttm_lab": json.dumps(notes)})
        atomic_write(self.folder / f"{name}.safetensors", content)

    def load(self, model: nn.Module, objective: nn.Module) -> pd.DataFrame:
        """Load a finished run's weights into ``model`` and ``objective``; return its history.

        Raises ``ValueError`` naming the folder where a file is damaged.
        """
        try:
            self._describe()
            _, history, notes = load_finished(self.folder, model)
            if notes.get("run") != identity(self.config):
                raise ValueError("model.safetensors was not written by this run")
            if objective.state_dict():
                load_weights(objective, self.folder / "objective.safetensors")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the run {self.folder} is damaged ({error}); delete that folder, and it is "
                "trained again"
            ) from error
        shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)  # left by a killed process
        return history

    def _checkpoints(self) -> list[Path]:
        return sorted((self.folder / "checkpoint").glob("step-*.pt"))

    def save_checkpoint(self, step: int, state: dict) -> None:
        """Keep ``state`` as the resume point after ``step`` steps, and the one before it."""
        self._describe()
        buffer = BytesIO()
        torch.save({"identity": identity(self.config), **state}, buffer)
        content = buffer.getvalue()
        content += hashlib.sha256(content).digest()  # the archive's own checksums, torch ignores
        atomic_write(self.folder / "checkpoint" / f"step-{step:09d}.pt", content)
        for old in self._checkpoints()[:-2]:
            old.unlink(missing_ok=True)

    def load_checkpoint(self, take: Callable[[dict], None] = lambda _: None) -> dict | None:
        """The newest whole checkpoint of this run, or None where there is none.

        ``take`` receives the state, and raises where it is another version's. A file that is
        damaged or refused is named in a warning, and the one before it is tried.
        Raises ``ValueError`` where there are files but none is whole.
        """
        files = self._checkpoints()
        for file in reversed(files):
            try:
                content = file.read_bytes()
                if hashlib.sha256(content[:-32]).digest() != content[-32:]:
                    raise ValueError("its checksum does not fit")
                state = torch.load(BytesIO(content[:-32]), map_location="cpu", weights_only=True)
                if not isinstance(state, dict) or state.get("identity") != identity(self.config):
                    raise ValueError("it belongs to another run")
                take(state)
            except (MemoryError, torch.OutOfMemoryError):
                raise  # nothing is wrong with the file
            except Exception as error:  # torch, pickle and zip each have their own
                reason = str(error) if isinstance(error, ValueError) else repr(error)
                warnings.warn(f"damaged checkpoint {file}: {reason}; not used", stacklevel=2)
                continue
            return state
        if files:
            raise ValueError(
                f"no checkpoint in {files[0].parent} can be read; delete that folder to start over"
            )
        return None
