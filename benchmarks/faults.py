"""What faults and damaged files do to runs: nothing may end in another result without a word.

    python benchmarks/faults.py --save                      some ten minutes
    python benchmarks/faults.py --runs 1 --flips 1 --every 30

Two small students are trained again and again: killed, with flipped bits in every kind of file,
damaged fields, cut and foreign files, deleted folders and a full disk. Each time the same call is
made once more. It has to end with the results of a run that nothing happened to, or to name the
damaged file. For POSIX systems: each call is a fork of this process, which saves importing torch.
"""

import argparse
import contextlib
import datetime
import hashlib
import io
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
import torch._dynamo  # what training imports late: here once, before the forks
import torch.fx.experimental.optimization
from machine import machine, save
from safetensors.torch import load_file, save_file

from ttm_lab import runs, training
from ttm_lab.course import cli
from ttm_lab.data import load_dataset
from ttm_lab.models import create_model

FORK = multiprocessing.get_context("fork")
SIGNALS = ("SIGKILL", "SIGINT", "SIGTERM")
ENDS = ("same result", "said, same result", "file named", "other result", "otherwise")
FILE_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate", "shutil.rmtree")
STEPS = 2 * 6 + 3 * 6  # optimizer steps of both students together


def small_data():
    data = load_dataset("digits", seed=0)

    def cut(part):
        return replace(part, images=part.images[:96], labels=part.labels[:96])

    return replace(data, train=cut(data.train), validation=cut(data.validation))


def train(folder, data):
    """Train or load two students: weights, history and number of files of each."""
    values = {"temperature": 4.0, "distill_weight": 1.0, "batch_size": 16, "remember": True}
    settings = [
        training.Settings("cnn_small", "kd", epochs=3, augmentation="crop", **values),
        training.Settings("cnn_small", "wttm", epochs=2, augmentation="crop", **values),
    ]
    options = {"folder": folder / "runs", "progress": False, "checkpoint_seconds": 0}
    teacher = create_model("cnn_small", 10, seed=7)
    students = training.distill_many(teacher, data, settings, device="cpu", **options)
    files = [sum(p.name != ".lock" for p in s.folder.iterdir()) for s in students]
    weights = [runs.weights_fingerprint(s.model) for s in students]
    return weights, [s.history.to_csv() for s in students], files


def evaluate(folder, _data):
    """``ttm-lab evaluate`` on one of the runs; its refusal counts as what was said."""
    (run,) = folder.glob("runs/kd-*")
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        status = cli.main(["evaluate", str(run), "--device", "cpu"])
    if status:
        raise ValueError(shown.getvalue())
    return shown.getvalue()


def call(function, folder, data, *, at=None, action=None, file_size=None):
    """How ``function`` ends in a process of its own: result, what was said, events until then.

    ``at`` is a kind of event ("file", "step" or "any") and its number: just before it, ``action``
    happens, a function or the name of a signal to this process.
    """
    receive, send = FORK.Pipe(False)

    def work():
        training.Meter.BLOCK = 3  # resume points within epochs, too
        torch.set_num_threads(1)
        for name in SIGNALS[1:]:  # as the command line has it
            signal.signal(getattr(signal, name), signal.default_int_handler)
        seen = Counter()

        def tick(kind):
            seen[kind] += 1
            seen["any"] += 1
            if at in ((kind, seen[kind]), ("any", seen["any"])):
                if callable(action):
                    action()
                else:
                    os.kill(os.getpid(), getattr(signal, action))

        def hook(event, arguments):
            if event in FILE_EVENTS and str(folder) in str(arguments[0]):
                tick("file")

        def counted(function, kind):
            def wrapped(*arguments, **options):
                tick(kind)
                return function(*arguments, **options)

            return wrapped

        sys.addaudithook(hook)
        os.fsync = counted(lambda _: None, "file")  # slow, and no power is cut here
        torch.optim.SGD.step = counted(torch.optim.SGD.step, "step")
        if file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                result, message = function(folder, data), ""
            except (ValueError, OSError) as error:
                result, message = "refused", str(error)
            except BaseException as error:
                result, message = type(error).__name__, str(error)
        send.send((result, message + "".join(str(w.message) for w in said), seen))
        os._exit(0)

    process = FORK.Process(target=work)
    process.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        return "killed", "", Counter()
    finally:
        process.join()


class Campaign:
    """Folders to start from, the results that have to come out, and counts by kind of fault."""

    def __init__(self, work, every):
        self.work, self.every = work, every
        self.random, self.data = random.Random(0), small_data()
        runs.environment()  # slow, and the same for all
        self.counts, self.kills, self.bad = {}, Counter(), []
        whole = work / "whole"
        self.result, said, self.events = call(train, whole, self.data)
        assert not said, said
        self.files = results(whole)
        # broken off in the second epoch, with two resume points of each student
        half = work / "half"
        call(train, half, self.data, at=("step", 2 * 10 + 1), action="SIGKILL")
        assert len(list(half.glob("runs/*/checkpoint/*.pt"))) == 4
        # what the teacher said is remembered, and no run is there
        asked = work / "asked"
        shutil.copytree(whole / "remembered", asked / "remembered")
        self.starts = {"finished": whole, "broken off": half, "remembered": asked, "new": None}

    def folder(self, start):
        folder = self.work / "trial"
        shutil.rmtree(folder, ignore_errors=True)
        if self.starts[start]:
            shutil.copytree(self.starts[start], folder)
        return folder

    def count(self, kind, folder, victim, result, said, wanted=None):
        """Judge an end; ``victim`` is the file that has to be named."""
        if result == (wanted or self.result):
            end = "said, same result" if victim and victim.name in said else "same result"
            if wanted is None and results(folder) != self.files:
                end = "other result"
        elif result == "refused":
            end = "file named" if victim and victim.name in said else "otherwise"
        else:
            end = "otherwise" if isinstance(result, str) else "other result"
        if (folder.parent / "ran").exists():
            end = "otherwise"
        if end in ENDS[3:]:
            self.bad.append(f"{kind}: {end}, {victim}: {str(result)[:60]} {said[:500]}")
        self.counts.setdefault(kind, Counter())[end] += 1

    def damage(self, kind, start, pattern, change, function=train):
        """Change one file of a copy and call again."""
        folder = self.folder(start)
        # of checkpoints the newest one: the one before it has to be taken
        victim = sorted(folder.glob(pattern))[-1]
        change(victim)
        result, said, _ = call(function, folder, self.data)
        wanted = self.result if function is train else "a refusal"
        self.count(kind, folder, victim, result, said, None if function is train else wanted)

    def killed_again_and_again(self, many):
        for _ in range(many):
            folder = self.folder("new")
            while True:
                name = self.random.choice(SIGNALS)
                at = "any", self.random.randint(1, self.events["any"])
                result, said, _ = call(train, folder, self.data, at=at, action=name)
                if result not in ("killed", "KeyboardInterrupt"):
                    break
                self.kills[name] += 1
            self.count("runs killed again and again", folder, None, result, said)

    def killed_at_each_file_operation(self):
        for number in range(1, self.events["file"] + 1, self.every):
            folder = self.folder("new")
            result, _, _ = call(train, folder, self.data, at=("file", number), action="SIGKILL")
            assert result == "killed"
            result, said, _ = call(train, folder, self.data)
            self.count("killed at one file operation", folder, None, result, said)

    def flipped_bits(self, many):
        for start, pattern in [
            ("finished", "runs/kd-*/model.safetensors"),
            ("finished", "runs/kd-*/metrics.csv"),
            ("finished", "runs/kd-*/config.json"),
            ("finished", "runs/kd-*/environment.json"),
            ("broken off", "runs/kd-*/checkpoint/*.pt"),
            ("broken off", "runs/kd-*/config.json"),
            ("remembered", "remembered/*.f32"),
        ]:
            for _ in range(many):
                self.damage(
                    f"one bit of {pattern.rpartition('/')[2]}, {start}", start, pattern, self.flip
                )
        for _ in range(many):
            self.damage("two sign bits of a row", "remembered", "remembered/*.f32", self.flip_signs)

    def flip(self, path):
        content = bytearray(path.read_bytes())
        place = self.random.randrange(len(content))
        if path.suffix == ".f32":  # mostly holes: take what is known
            place = self.random.choice([k for k, byte in enumerate(content) if byte])
        content[place] ^= 1 << self.random.randrange(8)
        path.write_bytes(content)

    def flip_signs(self, path):
        content = bytearray(path.read_bytes())
        row = 4 * 11  # ten logits and a checksum
        known = [k for k in range(0, len(content), row) if any(content[k : k + row])]
        place = self.random.choice(known)
        for word in self.random.sample(range(10), 2):
            content[place + 4 * word + 3] ^= 0x80
        path.write_bytes(content)

    def cut_and_foreign(self):
        class Hostile:
            def __reduce__(_):
                return open, (str(self.work / "ran"), "w")

        hostile, archive = io.BytesIO(), io.BytesIO()
        torch.save({"model": Hostile()}, hostile)
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("../../../ran", "")
        contents = {
            "empty": b"",
            "zeros": bytes(5000),
            "picture": b"\x89PNG\r\n\x1a\n" + self.random.randbytes(500),
            "pickle": pickle.dumps(Hostile()),
            "torch": hostile.getvalue(),
            "archive": archive.getvalue(),
            "header of 2^60 bytes": struct.pack("<Q", 2**60) + b"{" + bytes(100),
            "list": b"[]",
            "null": b"null",
            "object": b"{}",
            "deep": b"[" * 100_000,
            "utf-16": '{"seed": 1}'.encode("utf-16"),
            "latin": "é,ü\n1,2\n".encode("latin-1"),
            "table": b"a,b\n1,2\n1,2,3\n",
        }
        # where a checksum is the file's last bytes, it may as well be right
        signed = {k: v + hashlib.sha256(v).digest() for k, v in contents.items()}
        for start, pattern, function in [
            ("finished", "runs/kd-*/model.safetensors", train),
            ("finished", "runs/kd-*/metrics.csv", train),
            ("finished", "runs/kd-*/config.json", train),
            ("finished", "runs/kd-*/model.safetensors", evaluate),
            ("finished", "runs/kd-*/metrics.csv", evaluate),
            ("finished", "runs/kd-*/config.json", evaluate),
            ("broken off", "runs/kd-*/checkpoint/*.pt", train),
        ]:
            where = f"{pattern.rpartition('/')[2]}, {start}"
            where += ", evaluate" if function is evaluate else ""
            known = signed if start == "broken off" else contents
            for content in list(known.values())[:: self.every]:
                change = lambda path, content=content: path.write_bytes(content)  # noqa: E731
                self.damage(f"foreign {where}", start, pattern, change, function)
            for kept in (0.5, 0.02, 0.9, 1)[:: self.every]:
                self.damage(
                    f"cut {where}",
                    start,
                    pattern,
                    lambda path, kept=kept: os.truncate(
                        path, int(kept * (path.stat().st_size - 1))
                    ),
                    function,
                )

    def damaged_fields(self):
        wrong = (None, [], {}, "x", -1, 1.5, torch.zeros(2))
        names = ("identity", "steps", "rows", "meter", "model", "objective", "optimizer")

        def write(path, change):
            state = torch.load(io.BytesIO(path.read_bytes()[:-32]), weights_only=True)
            change(state)
            buffer = io.BytesIO()
            torch.save(state, buffer)
            content = buffer.getvalue()
            path.write_bytes(content + hashlib.sha256(content).digest())

        changes = [lambda s, name=name: s.pop(name) for name in names]
        changes += [
            lambda s, name=name, value=value: s.update({name: value})
            for name in names
            for value in wrong
        ]
        for change in changes[:: self.every]:
            self.damage(
                "field of a checkpoint missing or wrong",
                "broken off",
                "runs/kd-*/checkpoint/*.pt",
                lambda path, change=change: write(path, change),
            )

    def other_weights(self):
        def nan(path):
            state = load_file(path)
            state[min(state)].view(-1)[0] = float("nan")
            save_file(state, path)

        def swap(*names):
            def change(path):
                (other,) = path.parents[1].glob("wttm-*")
                for name in names:
                    shutil.copy(other / name, path.with_name(name))

            return change

        def fresh(name):
            return lambda path: save_file(create_model(name, 10).state_dict(), path)

        changes = [nan, fresh("cnn_small"), fresh("cnn_large"), Path.unlink]
        changes += [swap("model.safetensors"), swap("model.safetensors", "metrics.csv")]
        pattern = "runs/kd-*/model.safetensors"
        for change in changes[:: self.every]:
            kind = "weights of another run or network, NaN, deleted"
            self.damage(kind, "finished", pattern, change)

    def deleted(self):
        for pattern in ("runs", "runs/kd-*", "runs/wttm-*", "runs/kd-*/config.json"):
            for step in range(1, STEPS + 1, 2 * self.every):
                folder = self.folder("new")

                def delete(folder=folder, pattern=pattern):
                    for path in list(folder.glob(pattern)):
                        shutil.rmtree(path) if path.is_dir() else path.unlink()

                result, said, _ = call(train, folder, self.data, at=("step", step), action=delete)
                victim = folder / "config.json"
                self.count(f"{pattern} deleted while it trains", folder, victim, result, said)

    def full_disk(self, many):
        largest = max(p.stat().st_size for p in self.starts["broken off"].rglob("*.pt"))
        for _ in range(many):
            folder = self.folder("new")
            size = self.random.randrange(largest)
            result, said, _ = call(train, folder, self.data, file_size=size)
            self.judge_full("files that may not grow", folder, result, said)
        disk = self.work / "disk"
        disk.mkdir()
        for _ in range(many):
            size = f"size={self.random.randrange(8, 200)}k"
            mounted = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(disk)]
            if subprocess.run(mounted, capture_output=True, check=False).returncode:
                return  # only root may
            try:
                result, said, _ = call(train, disk, self.data)
                folder = self.folder("new")
                shutil.copytree(disk, folder)
            finally:
                subprocess.run(["umount", str(disk)], check=True)
            self.judge_full("full disk", folder, result, said)

    def judge_full(self, kind, folder, result, said):
        """The message names what could not be written, and with more room all goes on."""
        if result == "refused" and not any(str(p) in said for p in (folder, self.work / "disk")):
            self.bad.append(f"{kind}: nothing named in {said}")
        result, said, _ = call(train, folder, self.data)
        self.count(f"{kind}, then room", folder, None, result, said)


def results(folder):
    """All of the runs that has to come out bit by bit, and what must not be left behind."""
    left = [p.name for p in folder.rglob("*") if p.name == "checkpoint" or p.suffix == ".part"]
    names = ("config.json", "metrics.csv", "model.safetensors")
    found = [p for name in names for p in sorted(folder.glob(f"runs/*/{name}"))]
    return left, {str(p.relative_to(folder)): p.read_bytes() for p in found}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=48, help="runs killed again and again (48)")
    parser.add_argument("--flips", type=int, default=60, help="bits in each kind of file (60)")
    parser.add_argument("--every", type=int, default=1, help="only every n-th of the others (1)")
    parser.add_argument("--save", action="store_true", help="keep the result under results/")
    options = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), options.every)
        campaign.killed_again_and_again(options.runs)
        campaign.killed_at_each_file_operation()
        campaign.flipped_bits(options.flips)
        campaign.damaged_fields()
        campaign.cut_and_foreign()
        campaign.other_weights()
        campaign.deleted()
        campaign.full_disk(options.runs // 2 or 1)
    lines = [
        f"# Faults and damaged files, {datetime.date.today()}",
        "",
        machine(),
        "",
        "Each time two students are trained or loaded once more. `said` counts warnings that name "
        "the file, `file named` refusals. No other result may come out, and no other exception.",
        "",
        f"| fault | tried | {' | '.join(ENDS)} |",
        f"| --- |{' --- |' * (1 + len(ENDS))}",
    ]
    for kind, ends in campaign.counts.items():
        row = [sum(ends.values()), *(ends[end] for end in ENDS)]
        lines.append(f"| {kind} | {' | '.join(map(str, row))} |")
    kills = ", ".join(f"{number} by {name}" for name, number in sorted(campaign.kills.items()))
    lines += ["", f"Killed again and again: {kills}. All took {time.monotonic() - start:.0f} s."]
    print("\n".join([*lines, *campaign.bad]))
    if options.save:
        save("faults", lines)
    return 1 if campaign.bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
