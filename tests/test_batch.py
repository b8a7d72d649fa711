"""The batch on small notebooks of its own: failures, time-outs, resuming, stopping, locking.

Notebooks tell the test where they are through named pipes, so that nothing waits for a clock.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import nbformat
import psutil
import pytest

from ttm_lab.course import batch, evidence, execute, report
from ttm_lab.course.cli import main

pytestmark = pytest.mark.skipif(os.name == "nt", reason="named pipes and POSIX signals")

COUNT = "with open('ran.txt', 'a') as f: f.write(NAME + '\\n')"
RECORD = (
    "from ttm_lab.course import evidence\n"
    "evidence.record('A1', 0.0, tolerance=0.0, scope='float64', measure='difference')"
)
# Tells the test its process number, then waits for a word from the test.
BLOCK = (
    "import os\n"
    "with open('pipe', 'w') as pipe: pipe.write(str(os.getpid()))\n"
    "with open('go') as go: go.read()"
)


PYTHON = {"name": "python3", "display_name": "Python 3", "language": "python"}
# A child in a session of its own, which waits for a word that nobody says.
LEAVE = (
    "import subprocess, sys\n"
    "child = subprocess.Popen([sys.executable, '-c', 'open(\"go\").read()'], "
    "start_new_session=True)\n"
    "open('child', 'w').write(str(child.pid))"
)


class Course:
    """A folder with notebooks in it, in a path with spaces."""

    def __init__(self, root):
        self.root, self.notebooks = root, root / "notebooks"
        self.out = root / "runs" / "reproduce" / "quick"
        self.notebooks.mkdir(parents=True)
        for pipe in ("pipe", "go"):
            os.mkfifo(self.notebooks / pipe)

    def add(self, name, *cells, after=(), kernelspec=PYTHON):
        metadata = {"ttm_lab": {"after": list(after)}, "kernelspec": kernelspec}
        if kernelspec is None:
            del metadata["kernelspec"]
        notebook = nbformat.v4.new_notebook(metadata=metadata)
        start = 'profile = "quick"\nvalue = 1'
        tagged = nbformat.v4.new_code_cell(start, metadata={"tags": ["parameters"]})
        notebook.cells = [nbformat.v4.new_markdown_cell(f"# Title of {name}"), tagged]
        for source in (f"NAME = {name!r}\n{COUNT}", *cells):
            notebook.cells.append(nbformat.v4.new_code_cell(source))
        for k, cell in enumerate(notebook.cells):
            cell.id = f"cell-{k}"
        nbformat.write(notebook, self.notebooks / f"{name}.ipynb")

    def run(self, **options):
        return batch.reproduce(root=self.root, **{"jobs": 1, **options})

    def start(self, *options):
        """Start the command in another process and wait until a notebook blocks; its kernel."""
        command = [sys.executable, "-m", "ttm_lab", "reproduce", "--root", str(self.root)]
        command += ["--jobs", "1"]
        process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
        return process, psutil.Process(int((self.notebooks / "pipe").read_text()))

    def ran(self):
        return (self.notebooks / "ran.txt").read_text().split()

    def status(self):
        entries = json.loads((self.out / "status.json").read_text())["notebooks"]
        return {name: entry["status"] for name, entry in entries.items()}


@pytest.fixture
def course(tmp_path, monkeypatch):
    monkeypatch.delenv("TTM_LAB_RUNS", raising=False)
    return Course(tmp_path / "a course")


# Runs the cells of a notebook one after another, without a kernel, and leaves what the batch takes.
PLAIN = """
import json, os, sys
from pathlib import Path
path, folder, parameters = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
notebook, names = json.loads(path.read_text()), {}
given = "".join(f"{name} = {value!r}\\n" for name, value in parameters.items())
code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
injected = {**code[0], "id": "given", "source": given, "metadata": {"tags": [INJECTED]}}
notebook["cells"].insert(notebook["cells"].index(code[0]) + 1, injected)
os.chdir(path.parent)
for cell in code[:1] + [injected] + code[1:]:
    exec("".join(cell["source"]), names)
(folder / path.name).write_text(json.dumps(notebook))
""".replace("INJECTED", "'injected-parameters'")


@pytest.fixture
def plain(monkeypatch):
    """For what the batch decides, whoever runs the notebooks: no kernel."""

    def start(notebook, folder, parameters, *, log, **_):
        (folder / "results").mkdir(parents=True)
        words = [str(notebook), str(folder), json.dumps(parameters)]
        return subprocess.Popen([sys.executable, "-S", "-c", PLAIN, *words])

    monkeypatch.setattr(execute, "start", start)


def runs(number):
    """Whether the process of that number still runs."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    return False


def test_goes_on_after_a_failure_and_names_the_log(course, capsys):
    course.add("01_breaks", RECORD, "raise RuntimeError('wrong turn')")
    course.add("02_dies", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    course.add("03_works", RECORD)
    assert course.run(jobs=2) == 1
    assert course.status() == {"01_breaks": "failed", "02_dies": "failed", "03_works": "done"}
    printed = capsys.readouterr().out
    assert "RuntimeError: wrong turn" in printed
    assert str(course.out / "logs" / "01_breaks.log") in printed
    assert "wrong turn" in (course.out / "logs" / "01_breaks.log").read_text()
    # What a notebook recorded before it failed does not count.
    claims = evidence.collect(course.out / "results")
    assert list(claims.query("verdict == 'holds'")["notebook"]) == ["03_works"]
    page = (course.out / "report.html").read_text()
    assert "1 of 3 notebooks finished" in page
    for name in ("01_breaks", "03_works"):
        assert f'<a href="{name}.ipynb">Title of {name}</a>' in page
    # What a failed notebook showed before it failed is kept, and its error below.
    cells = nbformat.read(course.out / "01_breaks.ipynb", as_version=4).cells
    assert [o.evalue for cell in cells for o in cell.get("outputs", []) if "evalue" in o] == [
        "wrong turn"
    ]
    assert f"for JupyterLab: {course.out}\n" in printed


@pytest.mark.usefixtures("plain")
def test_runs_again_only_what_changed(course, capsys):
    course.add("01_first")
    course.add("02_second", after=["01_first"])
    course.add("03_third")
    everything = ["01_first", "02_second", "03_third"]
    assert course.run() == 0
    assert course.ran() == everything
    assert course.run() == 0
    assert course.ran() == everything
    assert "done before" in capsys.readouterr().out
    # A changed notebook runs again, and so does the one that builds on it.
    course.add("01_first", "changed = True")
    assert course.run() == 0
    assert course.ran() == [*everything, "01_first", "02_second"]
    # A lost file and a changed parameter make a notebook run again.
    (course.out / "03_third.ipynb").unlink()
    assert course.run() == 0
    assert course.run(only=["3"], parameters={"value": 2}) == 0
    assert course.ran()[5:] == ["03_third", "03_third"]
    executed = nbformat.read(course.out / "03_third.ipynb", as_version=4)
    assert any("value = 2" in cell.source for cell in executed.cells)


@pytest.mark.usefixtures("plain")
def test_a_batch_of_a_part_says_what_is_outdated(course):
    course.add("01_first")
    course.add("02_second")
    course.run()
    course.add("01_first", "changed = True")
    course.run(only=["02"])
    entries = json.loads((course.out / "status.json").read_text())["notebooks"]
    assert {name: entry["outdated"] for name, entry in entries.items()} == {
        "01_first": True,
        "02_second": False,
    }
    assert "Made from earlier notebooks" in (course.out / "report.html").read_text()


@pytest.mark.usefixtures("plain")
def test_notebooks_run_after_those_they_build_on(course):
    course.add("01_last", after=["03_first"])
    course.add("02_middle", after=["03_first"])
    course.add("03_first")
    assert course.run(jobs=3) == 0
    assert course.ran()[0] == "03_first"
    course.add("04_lost", after=["99_absent"])
    with pytest.raises(batch.Refused, match="99_absent"):
        course.run()


@pytest.mark.parametrize("over", ["cell", "notebook"])
def test_time_out_ends_the_notebook_and_its_kernel(course, monkeypatch, over):
    """The notebook's time is over as soon as the kernel blocks, however long it took to start."""
    course.add("01_hangs", BLOCK)
    monkeypatch.setattr(batch, "GRACE", 600)
    told = []

    def listen():
        told.append(int((course.notebooks / "pipe").read_text()))
        if over == "notebook":
            monkeypatch.setattr(batch, "GRACE", -60)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    assert course.run(timeout=10 if over == "cell" else 60) == 1
    assert course.status() == {"01_hangs": "timed out"}
    listener.join()
    assert not runs(*told)


def test_a_notebook_over_its_budget_is_marked(course, plain, monkeypatch, capsys):
    course.add("01_first")
    assert course.run() == 0
    assert " over " not in capsys.readouterr().out
    course.add("01_first", "changed = True")
    monkeypatch.setitem(batch.BUDGETS, "quick", 1e-6)
    assert course.run() == 0
    assert re.search(r"01_first +done +\d+\.\d  over 1e-06 s", capsys.readouterr().out)
    assert "over 1e-06 s" in (course.out / "report.html").read_text()


@pytest.mark.parametrize(
    ("profile", "cores", "gigabytes", "jobs", "threads"),
    [
        ("quick", 2, 8, 2, 1),
        ("quick", 8, 64, 8, 1),
        ("quick", 8, 4, 2, 4),  # as memory allows
        ("quick", 4, 0.5, 1, 4),
        ("standard", 8, 64, 1, 8),
        ("paper", 8, 64, 1, 8),
    ],
)
def test_quick_notebooks_run_side_by_side_as_cores_and_memory_allow(
    course, plain, monkeypatch, profile, cores, gigabytes, jobs, threads
):
    memory = psutil.virtual_memory()._replace(available=int(gigabytes * 2**30))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    seen = []
    start = execute.start

    def note(*arguments, environment, **options):
        seen.append(environment["OMP_NUM_THREADS"])
        return start(*arguments, environment=environment, **options)

    monkeypatch.setattr(execute, "start", note)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    course.add("01_first")
    assert course.run(profile=profile, jobs=None) == 0
    status = json.loads((course.out.parent / profile / "status.json").read_text())
    assert (status["jobs"], seen) == (jobs, [str(threads)])


def test_interrupt_keeps_what_is_finished_and_resumes(course):
    course.add("01_first")
    course.add("02_blocks", BLOCK)
    course.add("03_later")
    started, kernel = course.start()
    started.send_signal(signal.SIGINT)
    _, errors = started.communicate()
    assert started.returncode == 130
    assert "The same command goes on" in errors
    kernel.wait(timeout=120)
    assert course.status() == {"01_first": "done", "02_blocks": "interrupted"}
    assert not (course.out / "02_blocks.ipynb").exists()
    started, _ = course.start()
    (course.notebooks / "go").write_text("on")
    assert started.wait() == 0
    assert course.ran() == ["01_first", "02_blocks", "02_blocks", "03_later"]


@pytest.mark.slow
def test_killed_batch_leaves_no_process_and_no_lock(course):
    course.add("01_blocks", BLOCK)
    started, kernel = course.start()
    started.kill()
    started.communicate()
    kernel.wait(timeout=120)  # nobody is left to end it: it notices by itself
    course.add("01_blocks")
    assert course.run() == 0


def test_second_batch_in_the_same_folder_is_refused(course):
    course.add("01_blocks", BLOCK)
    started, _ = course.start()
    with pytest.raises(batch.Refused, match=rf"in use by process {started.pid} on .*--name"):
        course.run()
    (course.notebooks / "go").write_text("on")
    assert started.wait() == 0
    started.communicate()
    assert course.status() == {"01_blocks": "done"}
    assert course.ran() == ["01_blocks"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-p", "valu=2"], "'valu'; there are value"),
        (["--only", "07"], "no notebook is called '07'; there are 01_first"),
        (["--jobs", "0"], "--jobs 0: give at least 1"),
        (["--timeout", "inf"], "--timeout inf"),
        (["--only", ","], "--only names no notebook"),
        (["-p", "profile=paper"], "use --profile instead"),
        (["--timeout", "nan"], "--timeout nan"),
        (["--name", "../elsewhere"], "name '../elsewhere'"),
        (["--name", "a/.."], "name 'a/..'"),
        (["--only", "../elsewhere/01_first.ipynb"], "no notebook is called '../elsewhere/01"),
    ],
)
def test_refuses_before_anything_runs(course, capsys, options, message):
    course.add("01_first")
    assert main(["reproduce", "--root", str(course.root), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (course.root / "runs").exists()


def test_folder_without_notebooks_is_refused(tmp_path):
    with pytest.raises(batch.Refused, match="no notebooks in"):
        batch.reproduce(root=tmp_path)


def test_only_takes_a_notebooks_path(course, monkeypatch):
    course.add("01_first")
    course.add("02_second")
    monkeypatch.chdir(course.notebooks)
    notebooks = batch.find_notebooks(course.root)
    paths = ["02_second.ipynb", "./02_second", "notebooks/02_second.ipynb"]
    for path in [*paths, str(course.notebooks / "02_second.ipynb")]:
        assert batch.select(notebooks, [path]) == [notebooks[1]]


@pytest.mark.usefixtures("plain")
def test_a_status_file_removes_nothing_elsewhere_and_one_of_another_shape_runs_anew(course, capsys):
    course.add("01_first")
    assert course.run() == 0
    victim = course.root / "victim.ipynb"
    victim.write_text("dear")
    whole = json.loads((course.out / "status.json").read_text())
    entry = whole["notebooks"]["01_first"]
    hostile = {"01_first": entry, "../../../victim": entry}
    for notebooks in (hostile, {"01_first": entry | {"inputs": None}}):
        (course.out / "status.json").write_text(json.dumps(whole | {"notebooks": notebooks}))
        capsys.readouterr()
        assert course.run() == 0
        assert capsys.readouterr().out.count("status.json is damaged: everything runs anew\n") == 1
        assert victim.read_text() == "dear"
    assert course.ran() == ["01_first"] * 3


# Whose kernel runs ----------------------------------------------------------------------------


def test_runs_this_interpreter_whatever_kernels_and_names_there_are(tmp_path, monkeypatch):
    """A path with braces, kernelspecs that run nothing, variables that lead to them."""
    monkeypatch.delenv("TTM_LAB_RUNS", raising=False)
    course = Course(tmp_path / "a {profile} {0} course")
    for kernel in ("python3", "foreign"):
        folder = tmp_path / "jupyter" / "kernels" / kernel
        folder.mkdir(parents=True)
        spec = {"argv": ["false", "{connection_file}"], "display_name": "Python 3"}
        (folder / "kernel.json").write_text(json.dumps(spec | {"language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(course.notebooks / "pipe" / "none"))
    monkeypatch.setenv("JUPYTER_DEFAULT_PROVISIONER_NAME", "elsewhere")
    told = "import sys\nopen(f'by_{NAME}_{value}', 'w').write(sys.executable)"
    course.add("01_ours", told)
    course.add("02_editor", told, kernelspec={**PYTHON, "name": "foreign"})
    course.add("03_service", told, kernelspec=None)
    assert course.run(jobs=3, parameters={"value": 7}) == 0
    entries = json.loads((course.out / "status.json").read_text())["notebooks"]
    for name, entry in entries.items():
        ran = (course.notebooks / f"by_{name}_7").read_text()
        assert Path(ran).samefile(sys.executable)
        assert entry["interpreter"] == ran == sys.executable


# Files of another shape -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "",
        "<<<<<<< HEAD\n{\n=======\n{}\n>>>>>>> theirs\n",
        "[]",
        "{}",
        "null",
        '{"cells": 3}',
        b"\xff",
    ],
    ids=["empty", "conflict", "list", "object", "null", "cells", "bytes"],
)
def test_what_is_no_notebook_is_named_before_anything_runs(course, capsys, content):
    course.add("01_first")
    content = content if isinstance(content, bytes) else content.encode()
    (course.notebooks / "02_broken.ipynb").write_bytes(content)
    for command in (["reproduce"], ["handout", "--output", str(course.root / "out")]):
        assert main([*command, "--root", str(course.root)]) == 2
        said = capsys.readouterr().err
        assert "02_broken.ipynb is not a notebook" in said
        assert said.count("\n") == 1
    assert not (course.root / "runs").exists()
    assert not (course.root / "out").exists()


def test_what_devices_leave_beside_notebooks_is_none(course):
    course.add("01_first")
    (course.notebooks / "._01_first.ipynb").write_bytes(b"\x00\x05\x16\x07")
    assert [path.stem for path in batch.find_notebooks(course.root)] == ["01_first"]


def test_a_notebook_without_cells_is_done(course):
    nbformat.write(nbformat.v4.new_notebook(), course.notebooks / "01_nothing.ipynb")
    assert course.run() == 0
    assert course.status() == {"01_nothing": "done"}


def test_notebooks_that_wait_for_one_another_are_refused(course):
    course.add("01_first", after=["02_second"])
    course.add("02_second", after=["01_first"])
    with pytest.raises(batch.Refused, match=r"01_first.*ask to run after one another"):
        course.run()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A batch of one notebook, to copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TTM_LAB_RUNS", raising=False)
        course = Course(tmp_path_factory.mktemp("finished") / "course")
        course.add("01_first", RECORD)
        assert course.run() == 0
    return course


@pytest.fixture
def again(finished, tmp_path, monkeypatch):
    """The finished batch at a place of its own. Its notebook is noted, not run, if it starts."""
    monkeypatch.delenv("TTM_LAB_RUNS", raising=False)
    course = Course.__new__(Course)
    course.root = tmp_path / "course"
    course.notebooks, course.out = (
        course.root / "notebooks",
        course.root / finished.out.relative_to(finished.root),
    )
    shutil.copytree(finished.root, course.root, ignore=shutil.ignore_patterns("pipe", "go"))
    course.started = []

    def start(notebook, folder, *_, **__):
        course.started.append(notebook.stem)
        folder.mkdir(parents=True)
        return subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])

    monkeypatch.setattr(execute, "start", start)
    return course


def change(course, status):
    (course.out / "status.json").write_text(json.dumps(status))


def test_a_finished_notebook_is_not_started_again(again):
    assert again.run() == 0
    assert again.started == []


@pytest.mark.parametrize(
    "status",
    [
        *([], None, {}, 3, "text", {"notebooks": []}, {"notebooks": {"01_first": {}}}),
        {"profile": "quick", "notebooks": {"01_first": None}},
        {"profile": 1, "notebooks": {}},
        {"profile": "quick", "environment": [], "notebooks": {}},
    ],
    ids=str,
)
def test_a_status_file_of_another_shape_runs_anew_with_one_line(again, capsys, status):
    change(again, status)
    assert again.run() == 1
    assert again.started == ["01_first"]
    assert capsys.readouterr().out.count("status.json is damaged: everything runs anew\n") == 1


@pytest.mark.parametrize("field", ["status", "error", "seconds", "parameters", "inputs", "results"])
@pytest.mark.parametrize("value", [None, [[]], {"a": 1}, float("nan")], ids=str)
def test_an_entry_of_another_shape_runs_anew(again, field, value):
    status = json.loads((again.out / "status.json").read_text())
    if field == "parameters" and value == {"a": 1}:
        pytest.skip("has the right shape")
    status["notebooks"]["01_first"][field] = value
    change(again, status)
    assert again.run() == 1
    assert again.started == ["01_first"]


@pytest.mark.parametrize(
    "name",
    ["../../../../victim", "..", ".", "", "/tmp/victim", "a/../../victim", "x" * 300, "\ud800"],
)
def test_a_status_file_deletes_nothing_outside_its_folder(again, tmp_path, name):
    (tmp_path / "victim.ipynb").write_text("mine")
    (again.root / "runs" / "victim").mkdir()
    status = json.loads((again.out / "status.json").read_text())
    status["notebooks"][name] = status["notebooks"]["01_first"]
    change(again, status)
    kept = sorted(path for path in tmp_path.rglob("*") if again.out not in path.parents)
    again.run()
    assert again.started == ["01_first"]
    assert set(kept) <= set(tmp_path.rglob("*"))


@pytest.mark.parametrize(("field", "value"), [("log", "../x"), ("results", ["/etc/hostname"])])
def test_files_that_a_status_file_names_lie_in_its_folder(again, field, value):
    status = json.loads((again.out / "status.json").read_text())
    status["notebooks"]["01_first"][field] = value
    change(again, status)
    assert report.read_status(again.out) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", "no notebook", '{"cells": 3}'])
def test_an_executed_notebook_that_is_none_runs_anew(again, content):
    (again.out / "01_first.ipynb").write_text(content)
    assert again.run() == 1
    assert again.started == ["01_first"]


@pytest.mark.filterwarnings("ignore:.* is no record of evidence")
def test_records_of_another_shape_are_named_and_left_out(again):
    folder = again.out / "results" / "01_first"
    (record,) = folder.glob("*.json")
    whole = json.loads(record.read_text())
    odd = [[], None, 3, {}, {"claim": []}, {"claim": "A1"}, {**whole, "claim": "Z9"}]
    odd += [{**whole, field: {"a": 1}} for field in ("claim", "contrasts", "scope")]
    for k, content in enumerate(odd):
        (folder / f"odd-{k:02}.json").write_text(json.dumps(content))
    (folder / "odd-deep.json").write_text("[" * 100_000)
    (folder / "odd-bytes.json").write_bytes(b"\xff\xfe")
    (folder / "odd-folder.json").mkdir()
    assert again.run() == 0
    with pytest.warns(UserWarning, match="no record of evidence") as warned:
        claims = evidence.collect(again.out / "results")
    named = {Path(str(w.message).split(" is no record")[0]).name for w in warned}
    assert named == {path.name for path in folder.glob("odd-*.json")}
    assert set(claims.query("verdict != 'not run'")["id"]) == {"A1"}


def test_a_record_cannot_reword_its_claim(again):
    folder = again.out / "results" / "01_first"
    (record,) = folder.glob("*.json")
    forged = json.loads(record.read_text()) | {"statement": "anything", "id": "B1"}
    record.write_text(json.dumps(forged))
    row = evidence.collect(again.out / "results").query("verdict == 'holds'").iloc[0]
    assert (row["id"], row["statement"]) == ("A1", evidence.claims()["A1"]["statement"])


# What else decides a result -------------------------------------------------------------------


def test_every_file_of_the_package_is_an_input(course, tmp_path, monkeypatch):
    course.add("01_first")
    package = tmp_path / "ttm_lab"
    shutil.copytree(
        Path(batch.__file__).parents[1], package, ignore=shutil.ignore_patterns("__pycache__")
    )
    monkeypatch.setattr(batch, "__file__", str(package / "course" / "batch.py"))

    def inputs():
        notebooks = batch.find_notebooks(course.root)
        course_batch = batch.Batch(course.root, course.out, notebooks, 1, 1, False)
        return course_batch.inputs(notebooks[0], {})

    before = inputs()
    assert before == inputs()
    files = [p for p in package.rglob("*") if p.is_file()]
    assert {"data", "models"} <= {p.parent.name for p in files}
    for path in files:
        text = path.read_bytes()
        path.write_bytes(text + b"\n")
        assert (inputs() != before) == (
            path.relative_to(package).as_posix() not in batch.BATCH_MODULES
        ), path
        path.write_bytes(text)


# Where the batch works ------------------------------------------------------------------------


def test_a_checkout_that_cannot_be_written_to_names_the_variable_that_moves_the_batch(
    course, tmp_path, monkeypatch, capsys
):
    course.add("01_first", "import os\nopen('runs_in', 'w').write(os.environ['TTM_LAB_RUNS'])")
    (course.root / "runs").write_text("no folder can be made here")
    assert main(["reproduce", "--root", str(course.root)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "cannot be written to" in said
    assert "set TTM_LAB_RUNS" in said
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TTM_LAB_RUNS", "elsewhere")
    assert main(["reproduce", "--root", str(course.root)]) == 0
    assert (tmp_path / "elsewhere" / "reproduce" / "quick" / "report.html").exists()
    # A notebook works in another folder: it is told the whole path.
    assert (course.notebooks / "runs_in").read_text() == str(tmp_path / "elsewhere")


# What a notebook leaves running ---------------------------------------------------------------


def test_a_child_in_a_session_of_its_own_ends_with_its_notebook(course, capsys):
    course.add("01_leaves", LEAVE)
    assert course.run() == 0
    number = int((course.notebooks / "child").read_text())
    assert not runs(number)
    assert f"left running by a notebook: process {number} (" in capsys.readouterr().out


def test_a_child_that_cannot_be_ended_is_named(course, monkeypatch, capsys):
    course.add("01_leaves", LEAVE)
    end = psutil.Process.kill

    def refuse(process):
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "kill", refuse)
    assert course.run() == 0
    number = int((course.notebooks / "child").read_text())
    assert runs(number)
    assert f"process {number} (" in (said := capsys.readouterr().out)
    assert "cannot be ended and goes on: end it yourself" in said
    end(psutil.Process(number))


@pytest.mark.slow
def test_a_killed_batch_takes_such_a_child_with_it(course):
    course.add("01_blocks", LEAVE, BLOCK)
    process, kernel = course.start()
    child = psutil.Process(int((course.notebooks / "child").read_text()))
    process.kill()
    process.communicate()
    kernel.wait(timeout=120)
    psutil.wait_procs([child], timeout=120)
    assert not runs(child.pid)


# Consoles -------------------------------------------------------------------------------------


def test_a_failing_cells_message_survives_any_console(course):
    course.add("01_breaks", "raise RuntimeError('Rényi 😀 \\x1b \\udcff')")
    command = [sys.executable, "-m", "ttm_lab", "reproduce", "--root", str(course.root)]
    plain = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    done = subprocess.run(command, env=os.environ | plain, capture_output=True)
    assert done.returncode == 1, done.stderr.decode()
    assert rb"RuntimeError: R\xe9nyi \U0001f600" in done.stdout
    entry = json.loads((course.out / "status.json").read_text())["notebooks"]["01_breaks"]
    assert entry["error"].startswith("RuntimeError: Rényi 😀")
    assert "Rényi 😀" in (course.out / "report.html").read_text(encoding="utf-8")
    assert "Rényi 😀" in (course.out / "logs" / "01_breaks.log").read_text(encoding="utf-8")
