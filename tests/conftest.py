"""What all tests need of the process they run in."""

import signal
import threading

import ttm_lab.course  # noqa: F401  # before anything reads a notebook: saves what it leaves out

# A shell without job control starts background jobs with Ctrl-C ignored, and every process that a
# test starts would inherit that: a test that stops one by SIGINT would wait in vain.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)
