"""Copies of the notebooks for students: exercises and their checks, without the solutions."""

import json
from pathlib import Path

from ttm_lab.course.batch import Refused, find_notebooks, select
from ttm_lab.files import atomic_write, find_root, user_path


def hand_out(
    folder: str | Path,
    *,
    only: list[str] | None = None,
    root: str | Path | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write the notebooks under ``root`` to ``folder`` without their solutions; return the copies.

    Cells tagged ``solution`` are left out, and so are outputs, which may show an answer. All else
    stays as it is. ``only`` picks notebooks by number or name. Nothing is written, and ``Refused``
    is raised, if a copy is there already and ``overwrite`` is not set, if the copies would replace
    the notebooks themselves, and if an exercise's stub has been solved in place.
    """
    if only is not None and not only:
        raise Refused("--only names no notebook")
    root = find_root() if root is None else user_path(root).resolve()
    folder = user_path(folder).resolve()
    chosen = select(find_notebooks(root), only or [])
    if folder == (root / "notebooks").resolve():
        raise Refused(f"{folder} holds the notebooks themselves: choose another folder")
    there = [path.name for path in chosen if (folder / path.name).exists()]
    if there and not overwrite:
        raise Refused(
            f"{folder} has {', '.join(there)} already, perhaps with somebody's answers: choose "
            "another folder, or replace them with --overwrite"
        )
    copies = {}
    for path in chosen:
        try:
            copies[folder / path.name] = _without_solutions(path)
        except Refused:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise Refused(f"{path} is no notebook that can be copied: {error!r}") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for copy, text in copies.items():
            atomic_write(copy, text)
    except OSError as error:
        raise Refused(f"{folder} cannot be written to: {error}") from error
    return list(copies)


def _without_solutions(path: Path) -> str:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["cells"] = [cell for cell in notebook["cells"] if "solution" not in _tags(cell)]
    for cell in notebook["cells"]:
        if "exercise" in _tags(cell) and "raise Unsolved(" not in "".join(cell["source"]):
            raise Refused(
                f"{path.name}: cell {cell.get('id')} holds an answer; restore the stub first"
            )
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])
