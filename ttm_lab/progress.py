"""What happens beside the steps of a training: measures, a progress bar, and resume points."""

import builtins
import os
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from ttm_lab import distributed
from ttm_lab.runs import new_column
from ttm_lab.teacher_cache import TeacherCache


class Clock:
    """Has resume points written, ``seconds`` apart: all processes at the same time."""

    def __init__(self, seconds: float, device: torch.device):
        self.seconds, self.device, self.saved = seconds, device, time.monotonic()

    def due(self) -> bool:
        return distributed.from_first(time.monotonic() - self.saved >= self.seconds, self.device)

    def save_when_due(self, students) -> None:
        """If it is time, write a resume point for each student with a run and steps left."""
        if self.due():
            for student in students:
                if student.run and not student.done:
                    student.save_checkpoint()
            self.saved = time.monotonic()


class Meter:
    """Sums of per-sample measures, taken in blocks and read once an epoch.

    They are Python's numbers, added up on the CPU: not every device has float64.
    """

    # Logits of so many batches wait before their metrics are computed. Resume points within an
    # epoch lie between two such blocks, so that a resume forms the same sums in the same order.
    BLOCK = 64

    def __init__(self, temperature: float, device: torch.device):
        self.temperature, self.device = temperature, device
        self.batches, self.totals, self.count = [], {}, 0

    def add(self, logits, labels, teacher_logits, losses: dict[str, Tensor] | None = None) -> None:
        losses = {name: value.detach() for name, value in (losses or {}).items()}
        self.batches.append((logits, labels, teacher_logits, losses))
        if len(self.batches) == self.BLOCK:
            self._flush()

    @torch.no_grad()
    def _flush(self) -> None:
        logits, labels, teacher_logits, losses = zip(*self.batches, strict=True)
        sizes = torch.tensor([len(batch) for batch in labels])
        found = {
            name: torch.stack([one[name] for one in losses]).cpu().double() * sizes
            for name in losses[0]
        }
        logits, labels = torch.cat(logits), torch.cat(labels)
        log_q = F.log_softmax(logits.float(), dim=-1)
        q = log_q.exp()
        found["accuracy"] = logits.argmax(-1) == labels
        found["entropy"] = -(q * log_q).sum(-1)
        found["confidence"] = q.amax(-1)
        if teacher_logits[0] is not None:
            log_p = F.log_softmax(torch.cat(teacher_logits).float() / self.temperature, dim=-1)
            log_p = log_p.clamp(min=torch.finfo(log_p.dtype).min)  # 0 * -inf is NaN
            found["divergence"] = (log_p.exp() * (log_p - log_q)).sum(-1)
        for name, values in found.items():
            self.totals[name] = self.totals.get(name, 0.0) + values.cpu().double().sum().item()
        self.count += len(labels)
        self.batches = []

    def _gather(self) -> None:
        """Bring what all processes have counted together."""
        if self.batches:
            self._flush()
        if distributed.world_size() > 1 and self.totals:
            sums = torch.tensor([*self.totals.values(), self.count], dtype=torch.float64)
            counted = distributed.total(sums.to(self.device)).tolist()
            self.totals = dict(zip(self.totals, counted[:-1], strict=True))
            self.count = int(counted[-1])

    def state(self) -> dict:
        """What has been counted, for a resume point; afterwards process 0 holds all of it."""
        self._gather()
        state = {"totals": self.totals, "count": self.count}
        self.restore(state)
        return state

    def restore(self, state: dict) -> None:
        """Go on from ``state``, which process 0 alone holds: others have the names and zeros."""
        mine = int(distributed.rank() == 0)
        self.totals = {new_column(name): mine * x for name, x in state["totals"].items()}
        self.count = mine * state["count"]

    def read(self, prefix: str) -> dict[str, float]:
        """Means per sample since the last reading; losses keep their bare names."""
        self._gather()
        names = [name if name.endswith("loss") else prefix + name for name in self.totals]
        values = [total / self.count for total in self.totals.values()]
        self.totals, self.count = {}, 0
        return dict(zip(names, values, strict=True))


class Progress:
    """A bar over batches at a screen; one line an epoch in a batch; nothing if switched off."""

    def __init__(self, progress: bool | None, students):
        screen = sys.stderr.isatty() or hasattr(builtins, "__IPYTHON__")
        batch = bool(os.environ.get("TTM_LAB_BATCH")) or not screen
        first = distributed.rank() == 0
        self.lines = progress is None and batch and first
        labels = {s.settings.name for s in students}
        what = labels.pop() if len(labels) == 1 else f"{len(labels)} students"
        self.what = f"{what}, seed {students[0].seed}"
        self.last = max(s.settings.epochs for s in students)
        options = {"desc": self.what, "unit": "batch", "total": max(s.last_step for s in students)}
        options["initial"] = min(s.steps for s in students)  # no part of this start's speed
        self.bar = tqdm(**options, disable=progress is False or self.lines or not first)

    def epoch_done(self, epoch: int, students) -> None:
        rows = [s.rows[-1] for s in students]
        part = "validation" if "validation_accuracy" in rows[0] else "train"
        accuracy = [row[f"{part}_accuracy"] for row in rows]
        low, high = min(accuracy), max(accuracy)
        text = f"epoch {epoch + 1}/{self.last}, {part} accuracy {low:.3f} to {high:.3f}"
        self.bar.set_postfix_str(text, refresh=False)
        if self.lines:
            print(f"{self.what}: {text}", file=sys.stderr, flush=True)

    def close(self, memory: TeacherCache | None) -> None:
        shown = self.lines or not self.bar.disable  # asked first: close() switches the bar off
        self.bar.close()
        if memory is not None and shown:
            share = f"{memory.hit_rate:.0%} of {memory.asked:,} teacher answers remembered"
            print(f"{self.what}: {share}", file=sys.stderr, flush=True)
