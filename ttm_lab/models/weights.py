"""Weights from files that others wrote."""

import argparse
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ttm_lab.files import user_path

# torch.load refuses by default what published files hold beside their tensors. A NumPy number, such
# as a learning rate that has decayed, is stored as a call of `scalar` with a dtype (NumPy 1 and 2
# name that function's module differently); the CIFAR teachers of the last epoch also keep the
# command line, a Namespace. Neither these types nor that call run foreign code.
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
_PUBLISHED_TYPES = [
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(code)) for code in np.typecodes["All"] if code not in "OV"},  # no objects
    bytes,  # an empty string of NumPy's
    argparse.Namespace,
]


def weights_sha256(state: dict[str, Tensor], start: str = "") -> str:
    """SHA-256 over ``start`` and every tensor of a state dict: its name, dtype, shape and bits."""
    digest = hashlib.sha256(start.encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def read_notes(path: str | Path) -> dict[str, str]:
    """What a run wrote into a safetensors file beside its weights; empty where no run did."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        # one entry: the order of several is random, and the same run must give the same file
        return metadata | json.loads(metadata.get("ttm_lab", "{}"))
    except (SafetensorError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); remove it and fetch it again"
        ) from error


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a file of weights into ``model``, strictly, and hand the model back.

    Reads safetensors, and what ``torch.save`` wrote in either of its formats: a plain state dict,
    or one under ``"model"`` or ``"state_dict"`` beside other entries, as in the published teachers.
    Weights go to the model's device and dtype wherever they were saved; the prefixes ``module.``
    (DataParallel) and ``_orig_mod.`` (torch.compile) are dropped, and batch norm's
    ``num_batches_tracked``, absent from old files, may be missing.

    No file can run code: pickles are read in torch's weights-only mode. Weights that were written
    with their checksum, as those of a run (``runs.Run.finish``), are held against it.

    Raises ``FileNotFoundError`` for a missing file and ``ValueError`` for one that is truncated or
    damaged, of another format, in need of running code, of another network (missing and unexpected
    names and differing shapes are listed), or with weights that are NaN or infinite.
    """
    state = _without_wrappers(_read(user_path(path)), path)
    wanted = model.state_dict()
    missing = [k for k in wanted if k not in state and not k.endswith(".num_batches_tracked")]
    unexpected = [k for k in state if k not in wanted]
    shapes = [
        f"{k}: file {tuple(state[k].shape)}, model {tuple(wanted[k].shape)}"
        for k in wanted
        if k in state and state[k].shape != wanted[k].shape
    ]
    if missing or unexpected or shapes:
        raise ValueError(
            f"{path} does not fit {type(model).__name__}: missing {_listed(missing)}, "
            f"unexpected {_listed(unexpected)}, other shapes {_listed(shapes)}"
        )
    broken = [k for k in state if not state[k].to(wanted[k].dtype).isfinite().all()]
    if broken:
        raise ValueError(
            f"{path} holds weights that are NaN or infinite, in {_listed(broken)}: its training "
            "went wrong or the file is damaged; take other weights"
        )
    # what is missing by now is num_batches_tracked, and only an average over all batches uses it
    model.load_state_dict(wanted | state)
    return model


def _read(path: Path):
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:] == b"{":  # a header's length in eight bytes, then the header, JSON
        from safetensors.torch import load_file

        notes, state = read_notes(path), load_file(path)
        # a note without its checksum has one under a damaged name
        wanted = notes.get("weights_sha256", "" if "run" in notes else None)
        if wanted not in (None, weights_sha256(state)):
            raise ValueError(
                f"{path} is damaged: its weights do not fit the checksum written with them; remove "
                "it and fetch or train it again"
            )
        return state
    try:
        with torch.serialization.safe_globals(_PUBLISHED_TYPES):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle, zip and struct each have their own for bad bytes
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        problem = (
            f"is refused: it asks for {foreign[1]}, which weights do not need and which could run "
            "code; ask its author for the weights alone, as safetensors"
            if foreign
            else f"is not a whole file of weights ({type(error).__name__}), neither safetensors "
            "nor torch.save; remove it and fetch it again"
        )
        # not chained: torch's own text recommends to switch the protection off
        raise ValueError(f"{path} {problem}") from None


def _without_wrappers(loaded, path: str | Path) -> dict[str, Tensor]:
    for key in ("model", "state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_meta or value.is_quantized)
        for name, value in loaded.items()
    ):
        found = sorted(map(str, loaded)) if isinstance(loaded, dict) else type(loaded).__name__
        raise ValueError(
            f"{path} holds {found}, not weights by name; save model.state_dict(), alone or "
            "under 'model' or 'state_dict'"
        )
    for prefix in ("module.", "_orig_mod.", "module."):  # either wrapper may be the outer one
        if all(name.startswith(prefix) for name in loaded):
            loaded = {name.removeprefix(prefix): tensor for name, tensor in loaded.items()}
    return dict(loaded)


def _listed(names: list[str]) -> str:
    return f"{names[:20]}" + (f" and {len(names) - 20} more" if len(names) > 20 else "")
