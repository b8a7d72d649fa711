"""The house: the library below, the course above, imports in one direction, and thin."""

import ast
from pathlib import Path

import pytest

import ttm_lab

PACKAGE = Path(ttm_lab.__file__).parent
# From the ground up. A module imports from its own floor or from lower ones.
FLOORS = (
    ("files", "probability", "distributed"),
    ("losses",),
    ("data", "models", "runs", "teacher_cache", "objectives", "torchdistill"),
    ("settings",),
    ("teacher",),
    ("checks", "progress", "analysis"),
    ("training",),
    ("course",),
    ("__main__",),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def room(module: str) -> str:
    """The top-level module or folder of the package that a dotted name lies in."""
    return [*module.split("."), "__init__"][1]


def imports(path: Path) -> set[tuple[str, str]]:
    """(room, imported room) of a file, wherever in it the import stands."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    here, found = path.relative_to(PACKAGE).parts[0].removesuffix(".py"), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "ttm_lab":
            targets = [alias.name for alias in node.names if alias.name in FLOOR]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ttm_lab."):
            targets = [room(node.module)]
        elif isinstance(node, ast.Import):
            targets = [room(a.name) for a in node.names if a.name.startswith("ttm_lab.")]
        else:
            continue
        found |= {(here, target) for target in targets}
    return found


SOURCES = sorted(PACKAGE.rglob("*.py"))


def test_every_module_has_a_floor():
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in SOURCES}
    assert rooms - {"__init__"} == set(FLOOR)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path):
    for here, there in imports(path):
        if here == "__init__":
            continue
        assert FLOOR[there] <= FLOOR[here], f"{here} imports {there}, which lies above it"


def test_no_circle_among_the_rooms():
    edges: dict[str, set[str]] = {}
    for path in SOURCES:
        for here, there in imports(path):
            if here != there:
                edges.setdefault(here, set()).add(there)

    def reach(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            for there in edges.get(todo.pop(), ()):
                if there not in seen:
                    seen.add(there)
                    todo.append(there)
        return seen

    assert not [name for name in edges if name in reach(name)]


LIMIT = 5_000  # what one person reads in a day; moving code into the course needs a reason, too


def test_the_library_without_the_course_is_thin():
    library = [path for path in SOURCES if PACKAGE / "course" not in path.parents]
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in library)
    assert lines < LIMIT, f"{lines:,} lines: what can go?"


def test_a_library_module_has_a_test_file_of_its_name():
    rooms = {name for names in FLOORS for name in names} - {"course", "__main__"}
    missing = [name for name in rooms if not Path(__file__).with_name(f"test_{name}.py").exists()]
    assert not missing
