"""The batch on small notebooks of its own: failures, time-outs, resuming, stopping, locking.

Notebooks tell the test where they are through named pipes, so that nothing waits for a clock.
"""

import json
import os
import signal
import subprocess
import sys

import nbformat
import psutil
import pytest

from ttm_lab.cli import main
from ttm_lab.course import batch, evidence

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


class Course:
    """A folder with notebooks in it, in a path with spaces."""

    def __init__(self, root):
        self.root, self.notebooks = root, root / "notebooks"
        self.out = root / "runs" / "reproduce" / "quick"
        self.notebooks.mkdir(parents=True)
        for pipe in ("pipe", "go"):
            os.mkfifo(self.notebooks / pipe)

    def add(self, name, *cells, after=()):
        notebook = nbformat.v4.new_notebook(
            metadata={
                "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
                "ttm_lab": {"after": list(after)},
            }
        )
        start = 'profile = "quick"\nvalue = 1'
        tagged = nbformat.v4.new_code_cell(start, metadata={"tags": ["parameters"]})
        notebook.cells = [nbformat.v4.new_markdown_cell(f"# Title of {name}"), tagged]
        for source in (f"NAME = {name!r}\n{COUNT}", *cells):
            notebook.cells.append(nbformat.v4.new_code_cell(source))
        for k, cell in enumerate(notebook.cells):
            cell.id = f"cell-{k}"
        nbformat.write(notebook, self.notebooks / f"{name}.ipynb")

    def run(self, **options):
        return batch.reproduce(root=self.root, **options)

    def start(self, *options):
        """Start the command in another process and wait until a notebook blocks; its kernel."""
        command = [sys.executable, "-m", "ttm_lab", "reproduce", "--root", str(self.root)]
        process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
        return process, psutil.Process(int((self.notebooks / "pipe").read_text()))

    def ran(self):
        return (self.notebooks / "ran.txt").read_text().split()

    def status(self):
        entries = json.loads((self.out / "status.json").read_text())["notebooks"]
        return {name: entry["status"] for name, entry in entries.items()}


@pytest.fixture
def course(tmp_path):
    return Course(tmp_path / "a course")


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
    shown = (course.out / "03_works.html").read_text()
    assert "Title of 03_works" in shown
    assert 'rel="prev" href="02_dies.html"' in shown  # as far as it came
    assert 'href="report.html"' in shown


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
    (course.out / "03_third.html").unlink()
    assert course.run() == 0
    assert course.run(only=["3"], parameters={"value": 2}) == 0
    assert course.ran()[5:] == ["03_third", "03_third"]
    executed = nbformat.read(course.out / "03_third.ipynb", as_version=4)
    assert any("value = 2" in cell.source for cell in executed.cells)


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


def test_notebooks_run_after_those_they_build_on(course):
    course.add("01_last", after=["03_first"])
    course.add("02_middle", after=["03_first"])
    course.add("03_first")
    assert course.run(jobs=3) == 0
    assert course.ran()[0] == "03_first"
    course.add("04_lost", after=["99_absent"])
    with pytest.raises(batch.Refused, match="99_absent"):
        course.run()


@pytest.mark.parametrize(("timeout", "grace"), [(3, 60), (60, -45)], ids=["cell", "notebook"])
def test_time_out_ends_the_notebook_and_its_kernel(course, monkeypatch, timeout, grace):
    write = "import os\nopen('kernel', 'w').write(str(os.getpid()))"
    course.add("01_hangs", write, "import threading\nthreading.Event().wait()")
    monkeypatch.setattr(batch, "GRACE", grace)
    assert course.run(timeout=timeout) == 1
    assert course.status() == {"01_hangs": "timed out"}
    kernel = int((course.notebooks / "kernel").read_text())
    assert not psutil.pid_exists(kernel) or psutil.Process(kernel).status() == "zombie"


def test_interrupt_keeps_what_is_finished_and_resumes(course):
    course.add("01_first")
    course.add("02_blocks", BLOCK)
    course.add("03_later")
    batch, kernel = course.start()
    batch.send_signal(signal.SIGINT)
    _, errors = batch.communicate()
    assert batch.returncode == 130
    assert "The same command goes on" in errors
    kernel.wait(timeout=30)
    assert course.status() == {"01_first": "done", "02_blocks": "interrupted"}
    assert not (course.out / "02_blocks.html").exists()
    batch, _ = course.start()
    (course.notebooks / "go").write_text("on")
    assert batch.wait() == 0
    assert course.ran() == ["01_first", "02_blocks", "02_blocks", "03_later"]


def test_killed_batch_leaves_no_process_and_no_lock(course):
    course.add("01_blocks", BLOCK)
    batch, kernel = course.start()
    batch.kill()
    batch.communicate()
    kernel.wait(timeout=30)  # nobody is left to end it: it notices by itself
    course.add("01_blocks")
    assert course.run() == 0


def test_second_batch_in_the_same_folder_is_refused(course):
    course.add("01_blocks", BLOCK)
    batch, _ = course.start()
    with pytest.raises(batch.Refused, match=rf"in use by process {batch.pid} on .*--name"):
        course.run()
    (course.notebooks / "go").write_text("on")
    assert batch.wait() == 0
    batch.communicate()
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


def test_a_status_file_removes_nothing_elsewhere_and_one_of_another_shape_runs_anew(course, capsys):
    course.add("01_first")
    assert course.run() == 0
    victim = course.root / "victim.html"
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


def test_an_executed_notebook_that_is_none_runs_anew(course):
    course.add("01_first")
    assert course.run() == 0
    (course.out / "01_first.ipynb").write_text("[]")
    assert course.run() == 0
    assert course.ran() == ["01_first"] * 2
