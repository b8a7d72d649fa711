"""Call a function for many tasks, several at once: joblib on one machine, Ray on a cluster."""

import functools
import itertools
import multiprocessing
import os
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import filelock
import joblib
import torch
from joblib.externals.loky import BrokenProcessPool, get_reusable_executor

from ttm_lab.files import FileLock

_PATIENCE = 120  # rounds of a second without a sign of life from a worker


def free_cores() -> int:
    """How many processes with the present number of threads may run at once."""
    cores, share = joblib.cpu_count(), os.environ.get("OMP_NUM_THREADS", "")
    if share.isdecimal():  # set where several notebooks share the cores
        cores = min(cores, int(share))
    return max(cores // torch.get_num_threads(), 1)


def run_tasks(
    function: Callable,
    tasks: Sequence[tuple],
    *,
    workers: int | None = None,
    engine: str = "joblib",
    card_share: float = 1.0,
) -> Iterator[tuple[tuple, object, Exception | None]]:
    """Call ``function(*task)`` for each task, several at once, in any order.

    A task whose worker was killed, or stopped for two minutes, runs again in a new pool; one that
    loses its worker each time fails. Close the iterator (``contextlib.closing``) where it may be
    left early: that ends the workers at once. They have as many threads as this process, so results
    are the same bit by bit.

    Args:
        function: found by import, as are its arguments' kinds; all of them are pickled.
        workers: processes at once, by default what cores or cards allow. One is this process.
        engine: ``"joblib"`` (this machine) or ``"ray"`` (the cluster that ``RAY_ADDRESS`` names or
            that runs here, else one on this machine).
        card_share: of a GPU for each worker, where there are any.

    Yields:
        The task, its result, and None or the error that it ended with.

    Raises:
        ValueError: an unknown engine, or a share that is not above 0 and at most 1.
    """
    if engine not in ("joblib", "ray") or not 0 < card_share <= 1:
        raise ValueError(
            f"engine={engine!r} must be 'joblib' or 'ray', and card_share={card_share} above 0 and "
            "at most 1"
        )
    if engine == "ray":
        return _on_ray(function, tasks, card_share)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or range(torch.cuda.device_count())
    cards = [str(c) for c in (visible.split(",") if isinstance(visible, str) else visible)]
    slots = cards * int(1 / card_share) if torch.cuda.is_available() else []
    workers = min(workers or len(slots) or free_cores(), len(slots) or len(tasks), len(tasks))
    return _here(function, tasks) if workers <= 1 else _in_pools(function, tasks, workers, slots)


def _here(function, tasks):
    for task in tasks:
        try:
            result, error = function(*task), None
        except Exception as raised:
            result, error = None, RuntimeError(f"{type(raised).__name__}: {raised}")
            error.__cause__ = raised
        yield task, result, error


def _in_pools(function, tasks, workers: int, slots: list[str]):
    left, alone = dict(enumerate(tasks)), False
    while left:
        numbers = list(left)[: 1 if alone else None]
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            # joblib would run a single worker here, where a kill ends everything
            pool = joblib.Parallel(
                max(workers, 2), return_as="generator_unordered", batch_size=1, max_nbytes=None
            )
            common = function, torch.get_num_threads(), (os.getpid(), folder, *slots)
            calls = [joblib.delayed(_work)(*common, number, left[number]) for number in numbers]
            ended, over = None, threading.Event()
            if os.name == "posix":
                threading.Thread(target=_end_the_silent, args=(folder, over), daemon=True).start()
            try:
                ended = pool(calls)
                for number, result, error in ended:
                    yield left.pop(number), result, error
                alone = False
            except BrokenProcessPool:  # a worker was killed: what is left runs in a new pool
                if alone:
                    message = "its process was killed each time (is the memory too small?)"
                    yield left.pop(numbers[0]), None, ChildProcessError(message)
                alone = not alone and len(left) == len(numbers)  # to see which of them it is
            finally:  # on Ctrl-C too: nothing goes on in the background
                over.set()
                with warnings.catch_warnings(action="ignore"):  # some tasks are not done: yes
                    ended and ended.close()
                get_reusable_executor(reuse=True).shutdown(kill_workers=True)


def _end_the_silent(folder: str, over: threading.Event) -> None:
    """Kill the workers that were stopped: their tasks run again in a new pool."""
    seen = {}
    # rounds are counted, not seconds: on Ctrl-Z or in a laptop's sleep all stand still
    while not over.wait(1):
        for worker in multiprocessing.active_children():
            file = Path(folder) / f"{worker.pid}.life"
            with suppress(OSError):  # no file yet, or worker and folder are gone meanwhile
                life, (before, rounds) = file.read_text(), seen.get(file, (None, 0))
                seen[file] = life, rounds + 1 if life == before else 0
                if seen[file][1] > _PATIENCE:
                    os.kill(worker.pid, signal.SIGKILL)  # loky's processes have no kill()


def _on_ray(function, tasks, card_share: float):
    import ray

    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False)
    threads = torch.get_num_threads()
    gpus = card_share if ray.cluster_resources().get("GPU") else 0
    remote = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=3)(_work)
    waiting = {remote.remote(function, threads, None, 0, task): task for task in tasks}
    try:
        while waiting:
            (done,), _ = ray.wait(list(waiting))
            try:
                _, result, error = ray.get(done)
            except ray.exceptions.RayError as lost:
                result, error = None, lost
            yield waiting.pop(done), result, error
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)
        if ours:
            ray.shutdown()


def _work(function, threads: int, place: tuple | None, number: int, task: tuple):
    """A task in a worker. Errors come back as text: not every kind survives the way."""
    if place:
        _settle(*place)
    torch.set_num_threads(threads)
    try:
        return number, function(*task), None
    except Exception as error:
        return number, None, RuntimeError(f"{type(error).__name__}: {error}")


@functools.cache
def _settle(parent: int, folder: str, *slots: str) -> filelock.BaseFileLock | None:
    """Once in each worker of a pool: take a share of a card, and end with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it

    sign = Path(folder) / f"{os.getpid()}.life"
    sign.touch()

    def follow():
        for beat in itertools.count():
            if os.getppid() != parent:
                os._exit(1)
            with suppress(OSError):  # the folder is gone: the pool is being ended
                sign.write_text(str(beat))
            time.sleep(1)

    if os.name == "posix":
        threading.Thread(target=follow, daemon=True).start()
    for place, card in enumerate(slots):
        with suppress(filelock.Timeout):
            lock = FileLock(Path(folder) / str(place))
            lock.acquire(timeout=0)
            os.environ["CUDA_VISIBLE_DEVICES"] = card
            return lock  # kept by the cache: held until this process ends
    return None
