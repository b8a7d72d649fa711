"""The campaign of benchmarks/faults.py in small: one or a few of each kind of fault."""

import os
import re
import subprocess
import sys

import pytest

from ttm_lab.files import find_root


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(os.name != "posix", reason="processes are forked")
def test_no_fault_ends_in_another_result_without_a_word(tmp_path):
    script = find_root(__file__) / "benchmarks" / "faults.py"
    command = [sys.executable, str(script), "--runs", "1", "--flips", "1", "--every", "30"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^\| (\D[^|]*) \| (\d+) \|.* \| (\d+) \| (\d+) \|$", done.stdout, re.M)
    assert len(rows) > 25
    assert all(int(tried) > 0 for _, tried, _, _ in rows)
    assert all(other == otherwise == "0" for _, _, other, otherwise in rows)
