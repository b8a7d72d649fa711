"""The published CIFAR-100 teachers, fetched once and checked ever after."""

import hashlib
import json
import os
import shutil
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tqdm.auto import tqdm

from ttm_lab.files import FileLock, atomic_write, downloads_folder, user_path
from ttm_lab.models.weights import load_weights

# scripts/fetch_pretrained_teachers.sh of github.com/HobbitLong/RepDistiller
ADDRESSES = {
    name: f"http://shape2prog.csail.mit.edu/repo/{name}_vanilla/ckpt_epoch_240.pth"
    for name in ("wrn_40_2", "resnet56", "resnet110", "resnet32x4", "vgg13", "ResNet50")
}
_ELSEWHERE = "https://github.com/megvii-research/mdistiller/releases/tag/checkpoints"
_TIMEOUT = 60  # seconds without an answer, or without the next byte


def fetch_teacher(name: str, folder: str | Path | None = None, *, progress: bool = True) -> Path:
    """Download a published CIFAR-100 teacher, unless it is there already, and return its path.

    The teachers of the CRD benchmark, which the paper took over (100 classes, 240 epochs):
    ``wrn_40_2``, ``resnet56``, ``resnet110``, ``resnet32x4``, ``vgg13`` and ``ResNet50``; the
    paper's ``wrn-40-2`` works too. ``load_weights(create_model(name, 100), path)`` makes the
    network of the file.

    A teacher lies at ``<name>_vanilla/ckpt_epoch_240.pth`` in ``folder`` (default:
    ``$TTM_LAB_DATA/teachers``, else ``data/downloads/teachers`` in the checkout). That is how
    RepDistiller and mdistiller lay out theirs, so a folder of theirs can be given, or a file put
    there by hand. It counts only if it loads, strictly, as that network.

    The address is plain HTTP, and no checksum was ever published. So the first file is trusted:
    its SHA-256 goes to ``checksums.json`` in ``folder``, and from then on only that very file is
    accepted. Whether the first was the authors', nothing here can tell, but its test accuracy
    can: the paper's tables state it (data/paper_results.csv, "teacher (plain training)").
    Whatever the file holds, it cannot run code (see ``load_weights``).

    Raises ``ConnectionError`` where the address gives no whole file, with what to do instead, and
    ``ValueError`` for a teacher without a known address, for a file that is not that network, and
    for one that is not the recorded one. A file that is refused on its way in is not kept.
    """
    from ttm_lab.models import model_name  # this module is part of that package

    name = model_name(name)
    if name not in ADDRESSES:
        raise ValueError(
            f"no published teacher is known for {name!r}, only for {', '.join(ADDRESSES)}; "
            f"train one: {_training(name)}"
        )
    folder = downloads_folder() / "teachers" if folder is None else user_path(folder)
    path = folder / f"{name}_vanilla" / "ckpt_epoch_240.pth"
    if path.is_file() and name in _checksums(folder):
        return _checked(name, path, folder)  # nothing to write: the folder may be read-only
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not path.is_file():
            _download(name, path, folder, progress)
        elif name not in _checksums(folder):  # put there by hand
            try:
                _load(name, path)
            except ValueError as error:
                raise ValueError(
                    f"{error}. Without this file, the teacher is fetched from {ADDRESSES[name]}"
                ) from error
            _record(name, _sha256(path), folder)
        return _checked(name, path, folder)


def _download(name: str, path: Path, folder: Path, progress: bool) -> None:
    address = ADDRESSES[name]
    part = path.with_name(f".{path.name}.part")  # one name: the next call clears a killed one's
    remedy = (
        f"Either put the published file at {path} by hand ({_ELSEWHERE} has teachers of the same "
        f"names), or train one: {_training(name)}"
    )
    try:
        try:
            _copy(address, part, name, progress)
        except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
            raise ConnectionError(
                f"cannot fetch the teacher {name} from {address}: {error}. {remedy}"
            ) from error
        try:
            _load(name, part)
        except ValueError as error:
            reason = str(error).replace(str(part), "what it gives").partition(";")[0]
            raise ValueError(
                f"{address} gives no teacher {name}: {reason}. Nothing was kept. {remedy}"
            ) from None
        found, wanted = _sha256(part), _checksums(folder).get(name)
        if wanted not in (None, found):
            raise ValueError(
                f"{address} now gives another file (SHA-256 {found}) than at first ({wanted}). "
                f"Nothing was kept. If you want the new one, remove {name!r} from "
                f"{folder / 'checksums.json'}"
            )
        if wanted is None:
            _record(name, found, folder)  # first, so that no download ever lies there unrecorded
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _copy(address: str, part: Path, name: str, progress: bool) -> None:
    # torch.hub's downloader waits for ever where a server falls silent, and takes a body that ends
    # before its Content-Length for a whole one
    with urlopen(address, timeout=_TIMEOUT) as response, open(part, "wb") as file:
        size = response.length  # None where the server does not say
        with tqdm.wrapattr(response, "read", total=size, desc=name, disable=not progress) as body:
            shutil.copyfileobj(body, file)
        if size not in (None, file.tell()):
            raise ConnectionError(f"the connection ended after {file.tell()} of {size} bytes")


def _load(name: str, path: Path) -> None:
    from ttm_lab.models import create_model

    load_weights(create_model(name, 100, seed=0), path)  # a seed: torch's global state stays


def _checked(name: str, path: Path, folder: Path) -> Path:
    found, wanted = _sha256(path), _checksums(folder)[name]
    if found != wanted:
        raise ValueError(
            f"{path} has changed: its SHA-256 is {found}, at first use it was {wanted}. Remove the "
            f"file, and it is fetched again; if you want another, remove {name!r} from "
            f"{folder / 'checksums.json'} as well"
        )
    return path


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksums(folder: Path) -> dict[str, str]:
    path = folder / "checksums.json"
    try:
        return {**json.loads(path.read_text(encoding="utf-8"))}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:  # not JSON, or not an object
        raise ValueError(
            f"{path} is damaged ({error}); remove it, and the files beside it are trusted anew"
        ) from error


def _record(name: str, checksum: str, folder: Path) -> None:
    checksums = _checksums(folder) | {name: checksum}
    atomic_write(folder / "checksums.json", json.dumps(checksums, indent=1) + "\n")


def _training(name: str) -> str:
    return f"ttm-lab train-teacher --model {name} --data cifar100"
