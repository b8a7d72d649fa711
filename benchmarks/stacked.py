"""Many students of one kind trained as one network, for a card that a single one leaves idle.

A ResNet-20 on 32x32 pictures uses a few per cent of a large GPU: its kernels are too small. Here S
students (seeds x settings) become one network whose convolutions have S groups and whose batch
norms have S times the channels, which is the same arithmetic. They get the batches, views, initial
weights and losses that ``ttm_lab.training.distill_many`` would give them; a test holds the two
against each other. One step of all students is one CUDA graph.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from ttm_lab.data.splits import hash_seed
from ttm_lab.losses import kd_loss, ttm_loss, wttm_loss
from ttm_lab.models import create_model
from ttm_lab.training import epoch_order

LOSSES = {"kd": kd_loss, "ttm": ttm_loss, "wttm": wttm_loss}


def convolution(x: Tensor, weight: Tensor, groups: int, stride: int) -> Tensor:
    """Each group's convolution, of the same size at stride 1.

    cuDNN's kernels for groups know stride 1 only; with stride 2 it takes one group after another,
    and layouts are changed around it: more than half of a step of 45 students. So 3x3 ones are
    taken at every pixel and thinned out, and 1x1 ones are products of matrices.
    """
    if stride == 1:
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=groups)
    if weight.shape[-1] > 1:
        y = F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=groups)
        return y[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last)
    pixels = x[:, :, ::2, ::2].permute(0, 2, 3, 1)
    rows = pixels.reshape(-1, groups, weight.shape[1]).transpose(0, 1)
    y = torch.bmm(rows, weight.view(groups, -1, weight.shape[1]).transpose(1, 2))
    return y.transpose(0, 1).reshape(*pixels.shape[:3], -1).permute(0, 3, 1, 2)


def beside(path: Path) -> Path:
    return path.with_stem(f"{path.stem}_momentum")


def batch_norm_relu(x, weight, bias, mean, variance, residual=None, relu=True) -> Tensor:
    y = F.batch_norm(x, mean, variance, weight, bias, training=True)
    y = y if residual is None else y + residual
    return y.relu_() if relu else y


class Stack:
    """Students of one architecture, seeds x settings, in training.

    Args:
        seeds, settings: as ``distill_many`` takes them; the settings share model, batch size,
            epochs, schedule shape, augmentation and precision.
        data: its train part is learned from, its validation part measured after each epoch.
        teacher: a network on the same device, or None where all methods are ``"ce"``.
        sample_weights: (len(settings), N), a factor of each training picture's distillation
            term; None for 1.
        smoothing: (len(settings),), the label smoothing of each cross-entropy; None for 0.
        compiled: have torch.compile fuse what surrounds the convolutions.
    """

    def __init__(
        self,
        seeds,
        settings,
        data,
        teacher,
        device,
        *,
        sample_weights=None,
        smoothing=None,
        compiled=False,
    ):
        self.seeds, self.settings, self.device = list(seeds), list(settings), torch.device(device)
        self.recipe, self.teacher = self.settings[0], teacher
        torch._dynamo.config.recompile_limit = 64  # a shape at a time, and there are some
        self.fused = torch.compile(batch_norm_relu, dynamic=False) if compiled else batch_norm_relu
        self.train, self.validation = data.train.to(device), data.validation.to(device)
        half = self.recipe.precision == "bfloat16"
        self.dtype = torch.bfloat16 if half else torch.float32
        self.count = len(self.seeds) * len(self.settings)
        networks = [
            create_model(self.recipe.model, data.num_classes, seed=seed)
            for seed in self.seeds
            for _ in self.settings
        ]
        parameters, buffers = torch.func.stack_module_state(networks)
        self.buffers = {name: x.to(device) for name, x in buffers.items()}
        # convolutions first: they alone are rounded to bfloat16, all in one go
        names = sorted(parameters, key=lambda name: parameters[name].ndim != 5)
        self.shapes = {name: parameters[name].shape for name in names}
        values = [parameters[name].detach().flatten() for name in names]
        self.convolutions = sum(parameters[name].ndim == 5 for name in names)
        parts = values[: self.convolutions], values[self.convolutions :]
        self.weights = [torch.cat(part).to(device).requires_grad_() for part in parts]
        self.momentum = [torch.zeros_like(w) for w in self.weights]
        self.rates = [torch.zeros_like(w) for w in self.weights]
        self.decays = [torch.zeros_like(w) for w in self.weights]
        self._spread(self.decays, [s.weight_decay for s in self.settings])
        arms = len(self.settings)
        if sample_weights is None:
            sample_weights = torch.ones(arms, len(self.train))
        self.sample_weights = sample_weights.to(device)
        smoothing = torch.zeros(arms) if smoothing is None else smoothing
        self.smoothing = smoothing[:, None].to(device)
        self.ce = torch.tensor([s.ce_weight for s in self.settings], device=device)
        groups = {}
        for arm, s in enumerate(self.settings):
            if s.method != "ce":
                groups.setdefault((s.method, s.temperature), []).append(arm)
        self.terms = [
            (
                LOSSES[method],
                temperature,
                torch.tensor(members, device=device),
                torch.tensor([self.settings[m].distill_weight for m in members], device=device),
            )
            for (method, temperature), members in groups.items()
        ]
        self.sums = torch.zeros(3, len(self.seeds), arms, device=device)
        self.graphs = {}
        # the teacher's logits by view, each asked for once, whichever seed sees it first
        rows = len(self.train) * self.train.count_views(self.recipe.augmentation)
        on_gpu = half and self.device.type == "cuda"
        self.asked_in = torch.float16 if on_gpu else torch.bfloat16 if half else torch.float32
        kept_in = torch.float16 if on_gpu else torch.float32
        classes = data.num_classes if teacher is not None else 1
        self.answers = torch.zeros(rows, classes, dtype=kept_in, device=device)
        self.known = torch.full((rows,), teacher is None, device=device)
        self.epoch = 0
        self.rows = []
        self.ahead = ThreadPoolExecutor(1)
        self.next_views = None

    def _spread(self, targets: list[Tensor], values: list[float]) -> None:
        """Write one value a setting to every weight of its students."""
        each = torch.tensor(values, device=self.device).repeat(len(self.seeds))
        shapes = list(self.shapes.values())
        parts = shapes[: self.convolutions], shapes[self.convolutions :]
        for target, part in zip(targets, parts, strict=True):
            for piece in target.split([shape.numel() for shape in part]):
                piece.view(self.count, -1).copy_(
                    each[:, None].expand(-1, piece.numel() // self.count)
                )

    def _named(self) -> dict[str, Tensor]:
        """Every parameter (S, ...) as a view of the flat weights; convolutions rounded."""
        shapes = list(self.shapes.items())
        parts = shapes[: self.convolutions], shapes[self.convolutions :]
        flat = self.weights[0].to(self.dtype), self.weights[1]
        return {
            name: piece.view(shape)
            for tensor, part in zip(flat, parts, strict=True)
            for piece, (name, shape) in zip(
                tensor.split([s.numel() for _, s in part]), part, strict=True
            )
        }

    def forward(self, images: Tensor, training: bool) -> Tensor:
        """Logits (seeds, settings, B, K) float32 of images (seeds, B, H, W, 3)."""
        p, b, count = self._named(), self.buffers, self.count

        def norm(x, name, residual=None, relu=True):
            weight, bias = p[f"{name}.weight"].flatten(), p[f"{name}.bias"].flatten()
            mean, variance = b[f"{name}.running_mean"].view(-1), b[f"{name}.running_var"].view(-1)
            if training:
                function = self.fused if len(x) == self.recipe.batch_size else batch_norm_relu
                return function(x, weight, bias, mean, variance, residual, relu)
            y = F.batch_norm(x, mean, variance, weight, bias, training=False)
            y = y if residual is None else y + residual
            return y.relu_() if relu else y

        def conv(x, name, stride):
            return convolution(x, p[f"{name}.weight"].flatten(0, 1), count, stride)

        # students of one seed look at the same pictures: one convolution for each seed
        stem = p["conv1.weight"].view(len(self.seeds), -1, *self.shapes["conv1.weight"][2:])
        pictures = images.permute(0, 1, 4, 2, 3)
        x = torch.cat(
            [F.conv2d(own, w, padding=1) for own, w in zip(pictures, stem, strict=True)], dim=1
        )
        x = norm(x.contiguous(memory_format=torch.channels_last), "bn1")
        blocks = dict.fromkeys(n.rpartition(".conv1")[0] for n in p if ".conv1." in n)
        for block in blocks:
            first = block.endswith(".0") and not block.startswith("layer1")
            out = norm(conv(x, f"{block}.conv1", 2 if first else 1), f"{block}.bn1")
            out = conv(out, f"{block}.conv2", 1)
            if first:
                x = norm(conv(x, f"{block}.downsample.0", 2), f"{block}.downsample.1", relu=False)
            x = norm(out, f"{block}.bn2", residual=x)
        features = x.float().mean((2, 3)).view(len(x), count, -1).transpose(0, 1)
        logits = torch.baddbmm(p["fc.bias"][:, None], features, p["fc.weight"].transpose(1, 2))
        return logits.view(len(self.seeds), len(self.settings), *logits.shape[1:])

    def losses(self, logits, teacher, labels, factors) -> Tensor:
        """Each student's loss (seeds, settings) on a batch."""
        target = labels[:, None].expand(logits.shape[:-1])
        log_q = logits.log_softmax(-1)
        label = log_q.gather(-1, target[..., None]).squeeze(-1)
        smooth = (1 - self.smoothing) * label + self.smoothing * log_q.mean(-1)
        total = -self.ce * smooth.mean(-1)
        for loss, temperature, members, weights in self.terms:
            value = loss(
                logits.index_select(1, members), teacher[:, None], temperature, reduction="none"
            )
            value = (value * factors.index_select(1, members)).mean(-1)
            total = total.index_add(1, members, weights * value)
        return total

    def _step(self, images, teacher, labels, factors) -> None:
        logits = self.forward(images, training=True)
        losses = self.losses(logits, teacher, labels, factors)
        gradients = torch.autograd.grad(losses.sum(), self.weights)
        with torch.no_grad():
            for w, g, m, rate, decay in zip(
                self.weights, gradients, self.momentum, self.rates, self.decays, strict=True
            ):
                m.mul_(self.recipe.momentum).add_(torch.addcmul(g, decay, w))
                w.addcmul_(m, rate, value=-1)
            log_q = logits.detach().log_softmax(-1)
            self.sums[0] += losses.detach() * labels.shape[-1]
            self.sums[1] += (log_q.argmax(-1) == labels[:, None]).sum(-1)
            self.sums[2] -= (log_q.exp() * log_q).sum((-2, -1))

    def step(self, *batch: Tensor) -> None:
        """One step of every student; on a GPU the second of a size is recorded, then replayed."""
        if self.device.type != "cuda":
            return self._step(*batch)
        size = batch[0].shape[1]
        if size not in self.graphs:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._step(*batch)  # a step like any other: it also makes what the graph needs
            torch.cuda.current_stream().wait_stream(side)
            self.graphs[size] = None
            return None
        if self.graphs[size] is None:
            inputs = [x.clone() for x in batch]
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._step(*inputs)
            self.graphs[size] = graph, inputs
        graph, inputs = self.graphs[size]
        for own, new in zip(inputs, batch, strict=True):
            own.copy_(new)
        graph.replay()
        return None

    def _views(self, epoch: int) -> Tensor:
        """The views (seeds, N) of one epoch, those of ``distill_many``."""
        s = self.recipe
        return torch.stack(
            [
                torch.cat(
                    list(
                        self.train.views(
                            s.batch_size,
                            order=epoch_order(len(self.train), seed, epoch),
                            augmentation=s.augmentation,
                            seed=hash_seed(seed, "augmentation", epoch),
                        )
                    )
                )
                for seed in self.seeds
            ]
        )

    @torch.no_grad()
    def _ask(self, views: Tensor, size: int = 4096) -> Tensor:
        """The teacher's logits (..., K) of views (...)."""
        new = views[~self.known[views]].unique()
        # pieces of one size: cuDNN looks for its fastest kernel at each new one
        for part in new.split(size) if len(new) else ():
            part = part.repeat(-(-size // len(part)))[:size]
            images, _ = self.train.take(part, self.recipe.augmentation)
            images = images.contiguous(memory_format=torch.channels_last)
            enabled = self.dtype != torch.float32
            with torch.autocast(self.device.type, self.asked_in, enabled=enabled):
                self.answers[part] = self.teacher(images).to(self.answers.dtype)
        self.known[new] = True
        return self.answers[views].float()

    def _pictures(self, views: Tensor) -> Tensor:
        """The images (N, H, W, 3) of views (N,)."""
        parts = [self.train.take(part, self.recipe.augmentation)[0] for part in views.split(4096)]
        return torch.cat([x.permute(0, 2, 3, 1).to(self.dtype) for x in parts])

    def train_epoch(self) -> None:
        s, count = self.recipe, self.train.count_views(self.recipe.augmentation)
        views = self.next_views.result() if self.next_views else self._views(self.epoch)
        if self.epoch + 1 < s.epochs:
            self.next_views = self.ahead.submit(self._views, self.epoch + 1)
        self._spread(self.rates, [each.learning_rate_at(self.epoch) for each in self.settings])
        self.sums.zero_()
        views = views.to(self.device)
        answers = self._ask(views)
        images = torch.stack([self._pictures(own) for own in views])
        pictures = views // count
        labels = self.train.labels[pictures]
        factors = self.sample_weights[:, pictures].transpose(0, 1)
        size = s.batch_size
        for start in range(0, len(self.train), size):
            here = slice(start, start + size)
            self.step(images[:, here], answers[:, here], labels[:, here], factors[:, :, here])
        self.epoch += 1
        for name, count in self.buffers.items():
            if name.endswith("num_batches_tracked"):
                count += -(-len(self.train) // size)
        measures = self.sums / len(self.train)
        names = ("train_loss", "train_accuracy", "train_entropy")
        row = dict(zip(names, measures.cpu(), strict=True)) | self.validate()
        self.rows.append(row)

    @torch.no_grad()
    def predict(self, part) -> Tensor:
        """Logits (seeds, settings, N, K) of every student on the pictures of a split."""
        parts = []
        for images, _ in part.batches(500):
            images = images.permute(0, 2, 3, 1).to(self.dtype)
            parts.append(self.forward(images.expand(len(self.seeds), *images.shape), False))
        return torch.cat(parts, dim=2)

    def validate(self) -> dict[str, Tensor]:
        """Accuracy, NLL and entropy (seeds, settings) on the validation part."""
        if not len(self.validation):
            return {}
        log_q = self.predict(self.validation).log_softmax(-1)
        labels = self.validation.labels.expand(log_q.shape[:-1])
        found = {
            "validation_accuracy": (log_q.argmax(-1) == labels).float().mean(-1),
            "validation_nll": -log_q.gather(-1, labels[..., None]).mean((-2, -1)),
            "validation_entropy": -(log_q.exp() * log_q).sum(-1).mean(-1),
        }
        return {name: value.cpu() for name, value in found.items()}

    def save(self, path: Path) -> None:
        """Write what a stack of the same arguments needs to go on from here.

        The momentum goes into a second file beside ``path``: for 15 students each is 16 MB.
        """
        rows = {f"row/{k}/{name}": x for k, row in enumerate(self.rows) for name, x in row.items()}
        buffers = {f"buffer/{name}": x.cpu() for name, x in self.buffers.items()}
        weights = {f"weight/{k}": w.detach().cpu() for k, w in enumerate(self.weights)}
        epoch = {"epoch": torch.tensor([self.epoch, self.recipe.epochs])}
        momentum = {f"momentum/{k}": m.cpu() for k, m in enumerate(self.momentum)} | epoch
        for file, state in ((path, weights | buffers | rows | epoch), (beside(path), momentum)):
            fresh = file.with_suffix(".new")
            save_file({name: x.contiguous() for name, x in state.items()}, fresh)
            fresh.replace(file)

    @torch.no_grad()
    def load(self, path: Path) -> None:
        """Go on from what ``save`` wrote."""
        state, momentum = load_file(path), load_file(beside(path))
        if (state["epoch"] != momentum["epoch"]).any():
            raise ValueError(f"{path} and {beside(path)} are of two epochs: remove both")
        self.epoch, epochs = state["epoch"].tolist()
        sizes = [state[f"weight/{k}"].shape for k in range(len(self.weights))]
        if sizes != [w.shape for w in self.weights] or epochs != self.recipe.epochs:
            raise ValueError(
                f"{path} holds other students or epochs: remove it, or name another folder"
            )
        for k, (w, m) in enumerate(zip(self.weights, self.momentum, strict=True)):
            w.copy_(state[f"weight/{k}"])
            m.copy_(momentum[f"momentum/{k}"])
        for name, x in self.buffers.items():
            x.copy_(state[f"buffer/{name}"])
        self.rows = [{} for _ in range(self.epoch)]
        for name, x in state.items():
            if name.startswith("row/"):
                _, k, measure = name.split("/")
                self.rows[int(k)][measure] = x

    def state_dicts(self) -> list[dict[str, Tensor]]:
        """The students' weights, seeds x settings, as ``create_model``'s network takes them."""
        shapes = list(self.shapes.items())
        parts = shapes[: self.convolutions], shapes[self.convolutions :]
        stacked = {name: x.cpu() for name, x in self.buffers.items()}
        for tensor, part in zip(self.weights, parts, strict=True):
            pieces = tensor.detach().cpu().split([s.numel() for _, s in part])
            stacked |= {name: x.view(s) for x, (name, s) in zip(pieces, part, strict=True)}
        return [{name: x[i].clone() for name, x in stacked.items()} for i in range(self.count)]
