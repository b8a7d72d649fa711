"""Many tasks on an engine: their results, whatever happens to the workers."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest
import torch

from ttm_lab.course import engine
from ttm_lab.course.engine import free_cores, run_tasks

SECONDS = 120  # until something counts as dead


def square(number: int) -> tuple[int, int]:
    if number == 2:
        raise ValueError("no twos")
    return number**2, torch.get_num_threads()


def dies_at_first(number: int, folder: Path) -> int:
    """A task whose worker is killed the first time; for 1 each time."""
    mark = folder / str(number)
    if number == 1 or (number == 2 and not mark.exists()):
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def waits(folder: Path, number: int) -> None:
    (folder / f"{number}.pid").write_text(str(os.getpid()))
    signal.sigwait([signal.SIGUSR1])


ENGINES = [{"workers": 1}, {"workers": 2}, pytest.param({"engine": "ray"}, id="ray")]


@pytest.fixture(params=ENGINES)
def options(request, one_thread):
    if request.param.get("engine"):
        request.getfixturevalue("cluster")
    return request.param


def test_every_engine_gives_the_results_of_a_loop_and_names_what_failed(options):
    tasks = [(number,) for number in range(5)]
    found = {n: (result, error) for (n,), result, error in run_tasks(square, tasks, **options)}
    result, error = found.pop(2)
    assert found == {n: ((n**2, 1), None) for n in (0, 1, 3, 4)}
    assert result is None
    assert "no twos" in str(error)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="processes are killed otherwise here")
def test_a_killed_worker_s_task_is_done_again(options, tmp_path):
    if options.get("workers") == 1:
        pytest.skip("one worker is this process")
    tasks = [(number, tmp_path) for number in range(3)]
    found = {n: (r, e) for (n, _), r, e in run_tasks(dies_at_first, tasks, **options)}
    assert [found[n] for n in (0, 2)] == [(0, None), (2, None)]
    assert found[1][0] is None
    assert isinstance(found[1][1], Exception)  # killed each time: given up, and said


def stops_at_first(number: int, folder: Path) -> int:
    mark = folder / str(number)
    if number == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    return number


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes cannot be stopped here")
def test_a_stopped_worker_s_task_is_done_again(tmp_path, monkeypatch, one_thread):
    monkeypatch.setattr(engine, "_PATIENCE", 5)
    tasks = [(number, tmp_path) for number in range(2)]
    found = {n: (r, e) for (n, _), r, e in run_tasks(stops_at_first, tasks, workers=2)}
    assert found == {0: (0, None), 1: (1, None)}


def test_who_leaves_early_leaves_no_worker_behind(one_thread):
    before = set(multiprocessing.active_children())
    with closing(run_tasks(square, [(1,), (3,), (4,)], workers=2)) as ended:
        next(ended)
    assert set(multiprocessing.active_children()) <= before
    lines = []
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # what has ended has no line, either
            lines.append(" ".join(process.cmdline()))
    assert not [x for x in lines if "loky" in x and "resource_tracker" not in x]


@pytest.mark.skipif(os.name != "posix", reason="a parent's death is seen on POSIX")
def test_workers_end_with_the_process_that_started_them(tmp_path):
    code = (
        "import sys; from pathlib import Path; from ttm_lab.course.engine import run_tasks\n"
        "import test_engine\n"
        "tasks = [(Path(sys.argv[1]), number) for number in range(2)]\n"
        "list(run_tasks(test_engine.waits, tasks, workers=2))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment)
    deadline = time.monotonic() + SECONDS
    while len(notes := [p.read_text() for p in tmp_path.glob("*.pid")]) < 2 or not all(notes):
        assert parent.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    workers = [psutil.Process(int(pid)) for pid in notes]
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=SECONDS)
    assert not alive


def test_as_many_workers_as_cores_or_shares_of_cards(monkeypatch, one_thread):
    monkeypatch.setattr(engine.joblib, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert free_cores() == 8
    torch.set_num_threads(4)
    assert free_cores() == 2
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as where several notebooks share the cores
    assert free_cores() == 1

    asked = []
    monkeypatch.setattr(engine, "_in_pools", lambda *arguments: asked.append(arguments[2:]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    tasks = [(number,) for number in range(9)]
    run_tasks(square, tasks)
    run_tasks(square, tasks, card_share=0.5)
    run_tasks(square, tasks, card_share=0.5, workers=3)
    assert asked == [(2, ["3", "5"]), (4, ["3", "5"] * 2), (3, ["3", "5"] * 2)]


def visible_card(_number: int) -> str:
    import test_engine  # the worker's own module, as it is pickled by reference

    barrier = Path(os.environ["TTM_LAB_TEST_BARRIER"])
    (barrier / str(os.getpid())).touch()
    while len(list(barrier.iterdir())) < 2:  # until both workers are at it
        time.sleep(test_engine.STEP)
    return os.environ["CUDA_VISIBLE_DEVICES"]


STEP = 0.05


def test_each_worker_has_a_card_of_its_own(monkeypatch, tmp_path, one_thread):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setenv("TTM_LAB_TEST_BARRIER", str(tmp_path))
    found = [result for _, result, _ in run_tasks(visible_card, [(1,), (2,)])]
    assert sorted(found) == ["3", "5"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "slurm"}, "engine='slurm' must be 'joblib' or 'ray'"),
        ({"card_share": 0}, "card_share=0"),
        ({"card_share": 1.5}, r"card_share=1\.5"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        run_tasks(square, [(1,)], **options)
