"""The published CIFAR-100 teachers, fetched once."""

import os
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import torch

from ttm_lab.files import FileLock, downloads_folder, user_path
from ttm_lab.models import create_model, load_weights, model_name

# scripts/fetch_pretrained_teachers.sh of github.com/HobbitLong/RepDistiller
ADDRESSES = {
    name: f"http://shape2prog.csail.mit.edu/repo/{name}_vanilla/ckpt_epoch_240.pth"
    for name in ("wrn_40_2", "resnet56", "resnet110", "resnet32x4", "vgg13", "ResNet50")
}
_ELSEWHERE = "https://github.com/megvii-research/mdistiller/releases/tag/checkpoints"


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

    The address is plain HTTP, and no checksum was ever published. Whether a file is the authors',
    nothing here can tell, but its test accuracy can: the paper's tables state it
    (``paper.results``, "teacher (plain training)"). Whatever the file holds, it cannot run code
    (see ``load_weights``).

    Raises ``ConnectionError`` where the address gives no file, with what to do instead, and
    ``ValueError`` for a teacher without a known address, and for a file that is not that network.
    A file that is refused on its way in is not kept.
    """
    name = model_name(name)
    if name not in ADDRESSES:
        raise ValueError(
            f"no published teacher is known for {name!r}, only for {', '.join(ADDRESSES)}; "
            f"train one: {_training(name)}"
        )
    folder = downloads_folder() / "teachers" if folder is None else user_path(folder)
    path = folder / f"{name}_vanilla" / "ckpt_epoch_240.pth"
    if path.is_file():
        _load(name, path)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not path.is_file():
            _download(name, path, progress)
    return path


def _download(name: str, path: Path, progress: bool) -> None:
    part = path.with_name(f".{path.name}.part")  # counts only once it is known to be whole
    remedy = (
        f"Either put the published file at {path} by hand ({_ELSEWHERE} has teachers of the same "
        f"names), or train one: {_training(name)}"
    )
    try:
        torch.hub.download_url_to_file(ADDRESSES[name], str(part), progress=progress)
        _load(name, part)
        os.replace(part, path)
    except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
        raise ConnectionError(
            f"cannot fetch the teacher {name} from {ADDRESSES[name]}: {error}. {remedy}"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{ADDRESSES[name]} gives no teacher {name} ({error}). Nothing was kept. {remedy}"
        ) from None
    finally:
        part.unlink(missing_ok=True)


def _load(name: str, path: Path) -> None:
    load_weights(create_model(name, 100, seed=0), path)  # a seed: torch's global state stays


def _training(name: str) -> str:
    return f"ttm-lab train-teacher --model {name} --data cifar100"
