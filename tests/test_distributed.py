"""Several processes end where one would, and a lost one costs nothing but time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or os.name != "posix",
    reason="torchrun with gloo is tested on POSIX systems",
)

# Gradients of one batch in float64, for shares that are equal, unequal, and smaller than the
# number of processes; then whole trainings in float32.
SAME = """
import sys
from dataclasses import replace
import torch
import torch.nn.functional as F
from ttm_lab import distributed
from ttm_lab.data import load_dataset
from ttm_lab.models import create_model
from ttm_lab.training import Settings, distill_many, train_teacher

torch.set_num_threads(1)
found = {}
with distributed.processes("cpu") as device:
    for size in (6, 5, 1):
        torch.manual_seed(size)
        images, labels = torch.randn(size, 3, 32, 32).double(), torch.arange(size)
        model = create_model("resnet8", 10, seed=0).double().train()
        network = distributed.wrap(model)
        first, step = distributed.shard()
        part = slice(first, None, step) if size >= step else slice(None)
        loss = F.cross_entropy(network(images[part]), labels[part])
        (loss * distributed.loss_factor(len(labels[part]), size)).backward()
        found[f"gradients {size}"] = torch.cat([p.grad.flatten() for p in model.parameters()])
        means = [b.double().flatten() for n, b in model.named_buffers() if "running_mean" in n]
        found[f"means {size}"] = torch.cat(means)
        variances = [b.double().flatten() for n, b in model.named_buffers() if "running_var" in n]
        found[f"variances {size}"] = torch.cat(variances)

    def cut(part, count):
        return replace(part, images=part.images[:count], labels=part.labels[:count])

    def train(data, models, **values):
        common = {"epochs": 2, "batch_size": 16, **values}
        parts = {"train": cut(data.train, 49), "validation": cut(data.validation, 33)}
        data = replace(data, **parts)
        options = {"device": device, "progress": False, "folder": sys.argv[2]}
        teacher = train_teacher(data, Settings(models[0], **common), **options)
        settings = [Settings(models[1], m, 4.0, 2.0, **common) for m in ("kd", "wttm")]
        for one in (teacher, *distill_many(teacher, data, settings, **options)):
            name = f"{models[1]} {one.name}"
            found[name] = torch.cat([p.detach().flatten() for p in one.model.parameters()])
            found[name + " history"] = torch.tensor(one.history.to_numpy())

    train(load_dataset("digits"), ("cnn_large", "cnn_small"))
    few = {"max_steps": 2, "learning_rate": 0.001, "augmentation": "crop", "track_test": True}
    train(load_dataset("digits", size=32), ("resnet14", "resnet8"), **few)
    if distributed.rank() == 0:
        torch.save(found, sys.argv[1])
"""

# The command itself, with a resume point after every second batch. Process 1 is killed before its
# n-th optimiser step.
LOSE = """
import os, signal, sys
import torch
from ttm_lab import training
from ttm_lab.course import cli

torch.set_num_threads(1)
training.Meter.BLOCK = 2
training.Clock.due = lambda self: True
kill_at, *arguments = sys.argv[1:]
count = 0
def step(self, *args, original=torch.optim.SGD.step, **kwargs):
    global count
    count += 1
    if os.environ.get("RANK") == "1" and count == int(kill_at):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *args, **kwargs)
torch.optim.SGD.step = step
sys.exit(cli.main(arguments))
"""

# Every loss on whole logits and on the same ones sharded over samples or over classes.
SHARDED = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh
from ttm_lab import losses

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (dist.get_world_size(),))
torch.manual_seed(0)
z, v, labels = *torch.randn(2, 8, 5), torch.arange(8) % 5
found = {}
for place in (Shard(0), Shard(-1), Replicate()):
    rows = Replicate() if place == Shard(-1) else place
    def share(tensor, how=place):
        return distribute_tensor(tensor, mesh, [how])
    for name in ("kd_loss", "ttm_loss", "wttm_loss", "dkd_loss", "decompose_ttm"):
        options = {} if name == "decompose_ttm" else {"check_finite": True}
        extra = [labels] if name == "dkd_loss" else []
        def value_and_gradient(student, *others):
            student.requires_grad_()
            value = getattr(losses, name)(student, *others, 4.0, **options)
            value = value.renyi.sum() + value.total.sum() if name == "decompose_ttm" else value
            return value.detach(), *torch.autograd.grad(value, student)
        whole = value_and_gradient(z.clone(), v, *extra)
        parts = value_and_gradient(share(z), share(v), *[share(x, rows) for x in extra])
        found[f"{name} {place}"] = [whole, [part.full_tensor() for part in parts]]

    bad = z.clone()
    bad[7, 4] = torch.nan  # in the last process's part
    try:
        losses.ttm_loss(share(bad), share(v), 4.0, check_finite=True)
    except ValueError as error:
        print(place, "refused:", error)
    try:
        losses.dkd_loss(share(z), share(v), share(labels + 1, rows), 4.0)
    except ValueError as error:
        print(place, "refused:", error)
if dist.get_rank() == 0:
    torch.save(found, sys.argv[1])
dist.destroy_process_group()
"""

# Gradients of a loss in blocks, each process with its share of the samples, in two accumulated
# halves; under a wrapper that joins gradients, and recomputed in the backward pass.
BLOCKS = """
import copy, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from ttm_lab import losses

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (dist.get_world_size(),))
torch.manual_seed(0)
network = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 50)).double()
images, v = torch.randn(12, 6).double(), torch.randn(12, 50).double()

def gradients(model, loss, parts, **options):
    for part in parts:
        def forward(x):
            return loss(model(x), v[part], 4.0, **options)
        recomputed = checkpoint(forward, images[part], use_reentrant=False)
        recomputed.backward()
    slopes = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
              for p in model.parameters()]
    return torch.cat([slope.flatten() for slope in slopes])

rank, found = dist.get_rank(), {}
halves = [torch.arange(12)[rank::2][:3], torch.arange(12)[rank::2][3:]]
wrappers = {"DDP": DistributedDataParallel, "FSDP2": lambda m: fully_shard(m, mesh=mesh)}
for name in ("kd_loss", "ttm_loss", "wttm_loss"):
    loss = getattr(losses, name)
    whole = 2 * gradients(copy.deepcopy(network), loss, [torch.arange(12)])
    for kind, wrap in wrappers.items():
        model = wrap(copy.deepcopy(network))
        found[f"{name} {kind}"] = whole, gradients(model, loss, halves, chunk_size=2)
if rank == 0:
    torch.save(found, sys.argv[1])
dist.destroy_process_group()
"""


def run(folder: Path, script: str, *arguments, processes: int) -> subprocess.CompletedProcess:
    file = folder / "script.py"
    file.write_text(script, encoding="utf-8")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launch if processes > 1 else []), file, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TTM_LAB_RUNS": str(folder / "runs")}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


def test_two_processes_end_where_one_does(tmp_path):
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        arguments = (folder / "found.pt", folder / "runs")
        done = run(folder, SAME, *arguments, processes=processes)
        assert done.returncode == 0, done.stderr
        found.append(torch.load(folder / "found.pt"))
    one, two = found
    assert one.keys() == two.keys()
    for name in one:
        a, b = one[name].double(), two[name].double()
        if name == "variances 1":
            continue  # each process saw the one picture, so n / (n - 1) differs by design
        # float64 to rounding; without batch norm float32 stays close for all of two epochs. Batch
        # norm on so few pictures multiplies a rounding error by about ten a step.
        tolerance = 1e-12 if name[0] in "gmv" else 1e-5 if "cnn" in name else 1e-4
        assert torch.allclose(a, b, rtol=0, atol=tolerance * a.abs().max().item()), name
    assert len(list((tmp_path / "2" / "runs").glob("*/model.safetensors"))) == 6


def results(folder: Path) -> dict[str, bytes]:
    names = ("metrics.csv", "model.safetensors")
    files = [path for name in names for path in (folder / "runs").glob(f"*/*/{name}")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_a_lost_process_ends_the_run_and_the_same_command_resumes(tmp_path):
    command = ["distill", "--pair", "resnet8:resnet8", "--methods", "kd,wttm", "--data", "digits"]
    command += ["--size", "16", "--epochs", "2", "--batch-size", "256", "--augmentation", "crop"]
    folders = {name: tmp_path / name for name in ("whole", "broken")}
    for folder in folders.values():
        folder.mkdir()
    whole = run(folders["whole"], LOSE, 0, *command, processes=2)
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.count("WTTM") == 2  # one process prints: two tables with a row each
    for kill_at in (4, 14):  # in the teacher's first epoch, then among the students
        lost = run(folders["broken"], LOSE, kill_at, *command, processes=2)
        assert lost.returncode != 0
        assert "same command" in lost.stderr
        assert list((folders["broken"] / "runs").glob("*/*/checkpoint/step-*.pt"))
    again = run(folders["broken"], LOSE, 0, *command, processes=2)
    assert again.returncode == 0, again.stderr
    assert again.stdout.replace("broken", "whole") == whole.stdout
    assert results(folders["broken"]) == results(folders["whole"])
    assert len(results(folders["whole"])) == 6
    for file in folders["whole"].glob("runs/*/*/environment.json"):
        assert json.loads(file.read_text())["processes"] == 2


@pytest.mark.slow
def test_more_processes_than_pictures_in_a_batch_are_refused(tmp_path):
    command = ["train-teacher", "--model", "resnet8", "--data", "digits", "--size", "32"]
    done = run(tmp_path, LOSE, 0, *command, "--batch-size", 1, processes=2)
    assert done.returncode != 0
    assert "batch_size=1 is the batch of all 2 processes together" in done.stderr


def test_losses_of_sharded_logits_are_those_of_whole_ones(tmp_path):
    done = run(tmp_path, SHARDED, tmp_path / "found.pt", processes=2)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt")
    assert len(found) == 15
    for name, (whole, parts) in found.items():
        torch.testing.assert_close(parts, list(whole), rtol=1e-5, atol=1e-6, msg=name)
    # both processes refuse, and both see what lies in the other's part
    assert done.stdout.count("student_logits hold 1 rows with NaN") == 6
    assert done.stdout.count("labels must lie between 0 and 4, got 1 to 5") == 6


def test_blocks_of_samples_under_wrappers_of_several_processes(tmp_path):
    done = run(tmp_path, BLOCKS, tmp_path / "found.pt", processes=2)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt")
    assert len(found) == 6
    for name, (whole, joined) in found.items():
        torch.testing.assert_close(joined, whole, rtol=1e-10, atol=1e-14, msg=name)
