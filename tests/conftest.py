"""What all tests need of the process they run in."""

import os
import signal
import sys
import threading

import pytest
import torch

import ttm_lab.course  # noqa: F401  # before anything reads a notebook: saves what it leaves out

# A shell without job control starts background jobs with Ctrl-C ignored, and every process that a
# test starts would inherit that: a test that stops one by SIGINT would wait in vain.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def one_thread():
    """One thread of torch in this process, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cluster():
    """A local Ray cluster of two cores, whose workers find the tests; skips without Ray."""
    ray = pytest.importorskip("ray", reason="Ray is not installed (the extra cluster)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        patch.setenv("RAY_raylet_start_wait_time_s", "240")  # on a busy machine
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield ray
        ray.shutdown()


@pytest.fixture(scope="module")
def torchdistill():
    return pytest.importorskip(
        "torchdistill.losses.mid_level",
        reason="needs torchdistill: pip install 'ttm-lab[features]'",
    )
