"""Time of notebook 5 (profile quick) at an earlier version and now.

Both versions run the whole notebook in turns, each in a process of its own and with an empty runs
folder, so that everything is trained anew; the interpreter and its packages are the same. Equal
seeds, students and settings: the ratio says how many times faster the same work is done. It is
wall-clock time and wants a machine that does nothing else.

    python benchmarks/notebook5.py                      about two minutes
    python benchmarks/notebook5.py --rounds 3 --revision HEAD~1
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import machine, save

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = Path("notebooks", "05_distil_on_real_data.ipynb")
EXECUTE = (
    "import sys, pathlib; from ttm_lab.course.execute import execute; "
    "execute(*map(pathlib.Path, sys.argv[1:]), {'profile': 'quick'}, cell_timeout=3600)"
)


def git(*words):
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"git {' '.join(words)} failed: {done.stderr.strip()}")
    return done.stdout.strip()


def seconds(checkout):
    """How long the notebook takes with its checkout's package, and its training cell alone."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = {"TTM_LAB_RUNS": f"{folder}/runs", "TTM_LAB_RESULTS": f"{folder}/results"}
        quiet = {"MPLBACKEND": "agg", "TQDM_DISABLE": "1", "TTM_LAB_BATCH": "1"}
        environment = {**os.environ, **fresh, **quiet, "PYTHONPATH": str(checkout)}
        command = [sys.executable, "-c", EXECUTE, str(checkout / NOTEBOOK), f"{folder}/out.ipynb"]
        start = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"the notebook failed in {checkout}:\n{done.stderr[-3000:]}")
        whole = time.perf_counter() - start
        cells = json.loads(Path(folder, "out.ipynb").read_text(encoding="utf-8"))["cells"]
        (training,) = (cell for cell in cells if cell["id"] == "train-all")
        return whole, training["metadata"]["papermill"]["duration"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1, help="pairs of runs (default 1)")
    parser.add_argument("--revision", default="4b6d4e9", help="the earlier version (4b6d4e9)")
    parser.add_argument("--save", action="store_true", help="write the ratios to results/")
    options = parser.parse_args()
    known = ["git", "-C", str(ROOT), "cat-file", "-e", f"{options.revision}^{{commit}}"]
    if subprocess.run(known, capture_output=True).returncode:
        sys.exit(
            f"revision {options.revision} is not in this repository: fetch the whole history with "
            "git fetch --unshallow, or name another by --revision"
        )
    lines = [
        f"# Notebook 5, profile quick: {options.revision} beside now, {datetime.date.today()}",
        "",
        machine(),
        "",
        "| round | before, s | of it training | now, s | of it training | times as fast |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    ratios, trainings, others = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        earlier = Path(folder) / "earlier"
        git("worktree", "add", "--detach", str(earlier), options.revision)
        try:
            for number in range(1, options.rounds + 1):
                (before, slow), (now, quick) = seconds(earlier), seconds(ROOT)
                ratios.append(before / now)
                trainings.append(slow / quick)
                others.append(now - quick)
                lines.append(
                    f"| {number} | {before:.1f} | {slow:.1f} | {now:.1f} | {quick:.1f} "
                    f"| {ratios[-1]:.2f} |"
                )
                print(lines[-1], flush=True)
        finally:
            git("worktree", "remove", "--force", str(earlier))
    lines += [
        "",
        f"Medians: the notebook {statistics.median(ratios):.2f} times as fast (wanted: 2), its "
        f"training {statistics.median(trainings):.2f} times, by {os.cpu_count()} cores instead of "
        f"one. What is not training takes {statistics.median(others):.1f} s: starting a kernel, "
        "importing torch, measuring, drawing.",
    ]
    print(*lines, sep="\n")
    if options.save:
        save("notebook5", lines)


if __name__ == "__main__":
    main()
