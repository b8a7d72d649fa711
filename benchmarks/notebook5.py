"""Time of notebook 5 (profile quick) at an earlier version and now.

Both versions run the whole notebook in turns, each in a process of its own and with an empty runs
folder, so that everything is trained anew; the interpreter and its packages are the same. Equal
seeds, students and settings: the ratio says how many times faster the same work is done. It is
wall-clock time and wants a machine that does nothing else.

    python benchmarks/notebook5.py                      several minutes
    python benchmarks/notebook5.py --rounds 3 --revision HEAD~1
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = Path("notebooks", "05_distil_on_real_data.ipynb")
EXECUTE = (
    "import sys, pathlib; from ttm_lab.execute import execute; "
    "execute(*map(pathlib.Path, sys.argv[1:]), {'profile': 'quick'}, cell_timeout=3600)"
)


def git(*words):
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"git {' '.join(words)} failed: {done.stderr.strip()}")
    return done.stdout.strip()


def seconds(checkout):
    """How long the notebook of ``checkout`` takes with that checkout's package."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = {"TTM_LAB_RUNS": f"{folder}/runs", "TTM_LAB_RESULTS": f"{folder}/results"}
        quiet = {"MPLBACKEND": "agg", "TQDM_DISABLE": "1", "TTM_LAB_BATCH": "1"}
        environment = {**os.environ, **fresh, **quiet, "PYTHONPATH": str(checkout)}
        command = [sys.executable, "-c", EXECUTE, str(checkout / NOTEBOOK), f"{folder}/out.ipynb"]
        start = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"the notebook failed in {checkout}:\n{done.stderr[-3000:]}")
        return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1, help="pairs of runs (default 1)")
    parser.add_argument("--revision", default="4b6d4e9", help="the earlier version (4b6d4e9)")
    options = parser.parse_args()
    known = ["git", "-C", str(ROOT), "cat-file", "-e", f"{options.revision}^{{commit}}"]
    if subprocess.run(known, capture_output=True).returncode:
        sys.exit(
            f"revision {options.revision} is not in this repository: fetch the whole history with "
            "git fetch --unshallow, or name another by --revision"
        )
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        earlier = Path(folder) / "earlier"
        git("worktree", "add", "--detach", str(earlier), options.revision)
        try:
            for number in range(1, options.rounds + 1):
                pairs.append((seconds(earlier), seconds(ROOT)))
                before, now = pairs[-1]
                print(f"round {number}: {options.revision} {before:.1f} s, now {now:.1f} s", end="")
                print(f", {before / now:.2f} times as fast", flush=True)
        finally:
            git("worktree", "remove", "--force", str(earlier))
    ratio = statistics.median(before / now for before, now in pairs)
    print(f"median of {len(pairs)} ratios: {ratio:.2f}")


if __name__ == "__main__":
    main()
