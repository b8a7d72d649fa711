"""Do notebooks with widgets hang in a batch? 60 papermill runs, three at a time.

    python benchmarks/hangs.py                    some ten minutes on two cores
    python benchmarks/hangs.py --runs 6 --limit 300

Each run is a process of its own, started as ``make reproduce`` starts it, with trainings cut short.
A run that has not ended after the limit counts as hung and is killed.
"""

import argparse
import datetime
import importlib.metadata
import itertools
import os
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from machine import machine, save

from ttm_lab.course import execute
from ttm_lab.files import find_root

NAMES = ("jupyterlab", "ipywidgets", "papermill", "nbclient", "ipykernel")


def run(notebook, folder, limit):
    """How a run ended, and after how many seconds."""
    folder.mkdir()
    environment = {**os.environ, "TTM_LAB_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    process = execute.start(
        notebook,
        folder / "job",
        {"profile": "quick", "max_steps": 2},
        log=folder / "log.txt",
        cell_timeout=10 * limit,  # a cell that hangs is not to end by a time-out of papermill's
        environment=environment,
    )
    try:
        ended = "failed" if process.wait(limit) else "finished"
    except subprocess.TimeoutExpired:
        execute.kill(process)
        ended = "hung"
    seconds = time.monotonic() - start
    if ended == "failed":
        print((folder / "log.txt").read_text(errors="replace")[-3000:])
    return ended, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=60, help="runs of all notebooks together (60)")
    parser.add_argument("--jobs", type=int, default=3, help="runs at a time (3)")
    parser.add_argument("--limit", type=float, default=600, help="seconds until a run has hung")
    parser.add_argument("--save", action="store_true", help="keep the result under results/")
    options = parser.parse_args()
    every = sorted((find_root(__file__) / "notebooks").glob("*.ipynb"))
    notebooks = [path for path in every if "explore." in path.read_text(encoding="utf-8")]
    queue = itertools.islice(itertools.cycle(notebooks), options.runs)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        waiting = [
            (path, pool.submit(run, path, Path(folder, f"{k:03}"), options.limit))
            for k, path in enumerate(queue)
        ]
        ended = []
        for path, future in waiting:
            ended.append((path.stem[:2], *future.result()))
            print("{} {} after {:.1f} s".format(*ended[-1]), flush=True)
    counts = Counter(how for _, how, _ in ended)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in NAMES)
    lines = [
        f"# Notebooks with widgets in a batch, {datetime.date.today()}",
        "",
        machine(),
        f"{versions}.",
        "",
        f"{len(ended)} papermill runs, {options.jobs} at a time: {counts['finished']} finished, "
        f"{counts['failed']} failed, {counts['hung']} hung (not ended after {options.limit:g} s).",
        "",
        "| notebook | runs | finished | failed | hung | seconds, median | longest |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in [path.stem[:2] for path in notebooks]:
        mine = [(how, seconds) for number, how, seconds in ended if number == name]
        row = Counter(how for how, _ in mine)
        spent = [seconds for _, seconds in mine] or [float("nan")]
        lines.append(
            f"| {name} | {len(mine)} | {row['finished']} | {row['failed']} | {row['hung']} | "
            f"{statistics.median(spent):.1f} | {max(spent):.1f} |"
        )
    print("\n".join(lines))
    if options.save:
        save("hangs", lines)
    return 1 if counts["hung"] or counts["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
