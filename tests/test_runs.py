"""A run survives being killed at any moment and ends as if nothing had happened."""

import errno
import json
import os
import signal
import subprocess
import sys
import warnings

import filelock
import pandas as pd
import pytest
import torch

from ttm_lab import runs
from ttm_lab.files import atomic_write, runs_folder
from ttm_lab.models import create_model

# Trains a teacher and two students in a folder, again and again, each time in a process of its own:
# a fork, which saves importing torch. Its argument lists the folders, the signal that each process
# gets, and at which event: before the n-th file takes its place, or before the n-th optimiser step.
# Prints how each process ended.
CHILD = """
import json, os, signal, sys, traceback
import torch
import torch._dynamo  # what training imports late: here once, before the forks
from dataclasses import replace
torch.set_num_threads(1)
from ttm_lab.data import Split, load_dataset
from ttm_lab.training import Settings, distill_many, train_teacher

count = 0
def tick(original, n, name):
    def wrapped(*args, **kwargs):
        global count
        count += 1
        if count == n:
            os.kill(os.getpid(), getattr(signal, name))
        return original(*args, **kwargs)
    return wrapped

data = load_dataset("digits", seed=0)
cut = lambda split: Split(split.images[:130], split.labels[:130])
data = replace(data, train=cut(data.train), validation=cut(data.validation))
values = {"temperature": 4.0, "distill_weight": 1.0}
students = [
    Settings("cnn_small", "kd", epochs=4, **values),
    Settings("cnn_small", "wttm", epochs=3, **values),
]

def train(folder, point, name):
    kind, n = point.split(":")
    if kind == "file":
        os.replace = tick(os.replace, int(n), name)
    else:
        torch.optim.SGD.step = tick(torch.optim.SGD.step, int(n), name)
    options = {"folder": folder, "progress": False, "checkpoint_seconds": 0}
    teacher = train_teacher(data, Settings("cnn_large", epochs=3), **options)
    distill_many(teacher, data, students, **options)

for arguments in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        try:
            train(*arguments)
        except KeyboardInterrupt:
            os._exit(130)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def train_again_and_again(*trainings: tuple) -> list[int]:
    """How each training of folder, point and signal ended."""
    words = json.dumps([(str(folder), *rest) for folder, *rest in trainings])
    command = [sys.executable, "-c", CHILD, words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return [int(line) for line in done.stdout.split()]


def results(folder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for name in ("config.json", "metrics.csv", "model.safetensors")
        for path in folder.glob(f"*/{name}")
    }


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL and forks exist on POSIX systems only")
def test_killed_again_and_again_a_run_ends_bit_identical(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    # Each start goes on from what the one before left, and is killed somewhere else: at the
    # config, at a teacher's checkpoint, in the middle of a teacher's and a student's epoch, by
    # Ctrl-C, between two students' checkpoints, and as the weights are about to take their place.
    points = [
        ("file:1", "SIGKILL"),
        ("file:3", "SIGKILL"),
        ("step:5", "SIGKILL"),
        ("step:10", "SIGINT"),
        ("file:4", "SIGKILL"),
        ("step:4", "SIGKILL"),
        ("file:3", "SIGKILL"),
    ]
    never = ("file:0", "SIGKILL")
    ends = train_again_and_again(
        (whole, *never), *((broken, *point) for point in points), (broken, *never)
    )
    kills = [130 if kill == "SIGINT" else -signal.SIGKILL for _, kill in points]
    assert ends == [0, *kills, 0]
    assert results(broken) == results(whole)
    assert len(results(whole)) == 9
    assert not list(broken.glob("*/checkpoint"))
    assert not list(broken.rglob("*.part"))


@pytest.fixture
def run(tmp_path):
    return runs.Run(tmp_path, "student", {"a": 1, "b": [0.1, None]})


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOLCK, "No locks available"), RuntimeError("no flock")]
)
def test_a_file_system_without_locks_is_named_with_the_way_out(run, monkeypatch, error):
    def acquire(*_, **__):
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with pytest.raises(OSError, match=r"\.lock cannot be locked .* TTM_LAB_RUNS"), run:
        pass


def test_names_of_any_length_fit(tmp_path, monkeypatch):
    long = 140 * "ä"  # more than the 255 bytes that a file's name may have
    atomic_write(tmp_path / f"{120 * 'ä'}.json", "whole")  # its temporary file's was longer
    monkeypatch.setenv("TTM_LAB_RUNS", str(tmp_path))
    with runs.Run(runs_folder(long), long, {"a": 1}) as run:
        assert run.folder.is_dir()
    other = runs.Run(runs_folder(long), long, {"a": 2})
    assert other.folder != run.folder
    short = runs.Run(tmp_path, "kd-seed3", {"a": 1})
    assert short.folder.name.startswith("kd-seed3-")


def test_identity_follows_the_config_not_the_order_of_its_keys():
    assert runs.identity({"a": 1, "b": 2.5}) == runs.identity({"b": 2.5, "a": 1})
    assert runs.identity({"a": 1}) != runs.identity({"a": 2})


def test_weights_fingerprint_sees_one_changed_bit():
    model = create_model("cnn_small", 10, seed=0)
    before = runs.weights_fingerprint(model)
    assert before == runs.weights_fingerprint(create_model("cnn_small", 10, seed=0))
    with torch.no_grad():
        model.classifier.bias[3] = torch.nextafter(model.classifier.bias[3], torch.tensor(9.0))
    assert runs.weights_fingerprint(model) != before


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(run):
    for epoch in (1, 2, 3):
        run.save_checkpoint(epoch, {"x": torch.tensor([epoch])})
    files = sorted((run.folder / "checkpoint").iterdir())
    assert [f.name for f in files] == ["step-000000002.pt", "step-000000003.pt"]
    files[1].write_bytes(files[1].read_bytes()[:100])
    with pytest.warns(UserWarning, match=r"damaged checkpoint .*step-000000003\.pt"):
        assert run.load_checkpoint()["x"].item() == 2
    files[0].write_bytes(b"")
    with (
        warnings.catch_warnings(action="ignore"),
        pytest.raises(ValueError, match="delete that folder to start over"),
    ):
        run.load_checkpoint()


@pytest.mark.parametrize("place", [0.1, 0.3, 0.5, 0.7, 0.9, 0.999])
def test_one_flipped_bit_in_a_checkpoint_is_noticed(run, place):
    for epoch in (1, 2):
        run.save_checkpoint(epoch, {"x": torch.full([1000], epoch)})
    newest = run.folder / "checkpoint" / "step-000000002.pt"
    damaged = bytearray(newest.read_bytes())
    damaged[int(place * len(damaged))] ^= 4
    newest.write_bytes(damaged)
    with pytest.warns(UserWarning, match=r"damaged checkpoint .*step-000000002\.pt: its checksum"):
        assert run.load_checkpoint()["x"].eq(1).all()


@pytest.mark.parametrize("damage", [b"", b"[1]", b"\xff\xfe{\0}\0", b"[" * 100_000])
def test_a_damaged_config_is_named_and_written_anew(run, damage):
    with run:
        wanted = (run.folder / "config.json").read_bytes()
    (run.folder / "config.json").write_bytes(damage)
    with pytest.warns(UserWarning, match=r"config\.json was (damaged|deleted); it is written anew"):
        run.save_checkpoint(1, {})
    assert (run.folder / "config.json").read_bytes() == wanted


def test_what_names_a_folder_stays_below_the_one_it_belongs_to(tmp_path):
    for name in ("../victim", "/victim", "..", "", "a\\b", "a/b"):
        with pytest.raises(ValueError, match="must be one name"):
            runs.Run(tmp_path, name, {})
        with pytest.raises(ValueError, match="must be one name"):
            runs_folder(name)


def test_a_checkpoint_of_another_run_is_not_taken(run, tmp_path):
    other = runs.Run(tmp_path, "student", {"a": 2})
    other.save_checkpoint(1, {})
    (run.folder / "checkpoint").mkdir(parents=True)
    name = "checkpoint/step-000000001.pt"
    (run.folder / name).write_bytes((other.folder / name).read_bytes())
    with (
        pytest.warns(UserWarning, match="belongs to another run"),
        pytest.raises(ValueError, match="no checkpoint"),
    ):
        run.load_checkpoint()


def test_a_checkpoint_that_would_run_code_is_not_loaded(run):
    import pickle

    class Hostile:
        def __reduce__(self):
            return (open, (str(run.folder / "owned"), "w"))

    path = run.folder / "checkpoint" / "step-000000001.pt"
    atomic_write(path, pickle.dumps(Hostile()))
    with warnings.catch_warnings(action="ignore"), pytest.raises(ValueError, match="over"):
        run.load_checkpoint()
    assert not (run.folder / "owned").exists()


def test_one_writer_a_run(run):
    with run:
        held = filelock.FileLock(run.folder / ".lock")
        with pytest.raises(filelock.Timeout):
            held.acquire(timeout=0)
    held.acquire(timeout=0)
    held.release()


def test_environment_is_recorded_and_is_plain_json():
    found = json.loads(json.dumps(runs.environment()))
    assert found["packages"]["torch"] == torch.__version__.split("+")[0]
    assert found["cores"] == os.cpu_count()


def test_a_run_that_goes_on_with_another_torch_says_so_and_keeps_both(tmp_path, recwarn):
    data = {"name": "digits", "seed": 0, "sha256": ""}
    config = {"settings": {"model": "cnn_small", "method": "ce"}, "seed": 0, "data": data}
    run = runs.Run(tmp_path, "student", config)
    path, model = run.folder / "environment.json", create_model("cnn_small", 10, seed=0)
    with run:
        here = json.loads(path.read_text())
    older = here | {"packages": here["packages"] | {"torch": "1.0"}}
    path.write_text(json.dumps(older))
    with pytest.warns(UserWarning, match=r"were made by torch 1\.0 on .* this is torch [2-9]"), run:
        pass
    assert json.loads(path.read_text()) == here | {"before": [older]}
    recwarn.clear()
    with run:
        run.finish(model, pd.DataFrame({"epoch": [1]}), torch.nn.Identity())
    run.load(model, torch.nn.Identity())
    assert not recwarn, "nothing is said twice, nor of the same place"
    path.write_text(json.dumps(older))  # a finished run is named, and stays as it was made
    with pytest.warns(UserWarning, match=r"torch 1\.0"):
        run.load(model, torch.nn.Identity())
    assert json.loads(path.read_text()) == older
    path.write_text("{")
    recwarn.clear()
    run.load(model, torch.nn.Identity())
    assert not recwarn, "a damaged record costs nothing"
