"""What a student minimises: named terms of the outputs of student and teacher, and their weights.

``Settings(method=...)`` takes a name, one term, or a whole ``Objective``. A term is one line:

    WTTMLoss(4.0)                                                   a loss of this package
    CrossEntropy(label_smoothing=0.1)                               label smoothing
    ConfidencePenalty()                                             with cross-entropy beside it
    LogitTerm(my_loss, name="mine", scale=2)                        your function of the logits
    FeatureTerm(nn.MSELoss(), "layer3", "layer3", project=nn.Conv2d(16, 64, 1), name="FitNet")

The parameters of terms, such as a projection's, are trained, saved and resumed with the student.
"""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn

from ttm_lab.losses import DISTLoss, DKDLoss, KDLoss, StandardizedLoss, TTMLoss, WTTMLoss

# By method name, what makes the loss from a temperature: each alone, and on standardised logits.
METHODS = {"kd": KDLoss, "ttm": TTMLoss, "wttm": WTTMLoss, "dkd": DKDLoss, "dist": DISTLoss}
_LOSSES = (*METHODS.values(), StandardizedLoss)
METHODS |= {
    f"{name}+std": lambda temperature, loss=loss: StandardizedLoss(loss(temperature))
    for name, loss in METHODS.items()
}


@dataclass(frozen=True)
class Output:
    """A network's output for a batch: ``logits`` (B, K), and the requested ``features`` by name.

    A student's has ``samples``, too: the pictures' places (B,) in the training part, of the whole
    batch where several processes share it, on the CPU.
    """

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)
    samples: Tensor | None = None


class Term(nn.Module):
    """One term of an objective: ``forward(student, teacher, labels)`` gives a scalar tensor.

    ``student`` and ``teacher`` are ``Output``. The features that a term needs beside the logits are
    named in ``student_features`` and ``teacher_features``. To be trained with a run folder, a
    subclass needs an ``identity``: what tells it from other terms, in values that JSON knows.
    """

    student_features: tuple[str, ...] = ()
    teacher_features: tuple[str, ...] = ()

    def identity(self):
        raise ValueError(
            f"{type(self).__name__} has no identity(), so its run could not be told from others: "
            "return a name and the values that change its numbers, or pass folder=None"
        )


class CrossEntropy(Term):
    """Cross-entropy with the labels, in float32, in nats.

    ``label_smoothing`` from 0 to 1 is the share of the target that all classes divide among
    them (Szegedy et al. 2016). Raises ``ValueError`` for another.
    """

    def __init__(self, label_smoothing: float = 0.0):
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing={label_smoothing!r} must be from 0 to 1")
        self.label_smoothing = float(label_smoothing)

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        return F.cross_entropy(student.logits.float(), labels, label_smoothing=self.label_smoothing)

    def identity(self):
        smoothing = self.label_smoothing
        return ["cross-entropy", {"label_smoothing": smoothing}] if smoothing else "cross-entropy"


class ConfidencePenalty(Term):
    """Minus the entropy of the student's probabilities, in float32, in nats: sure costs more.

    Beside cross-entropy, with the weight beta of Pereyra et al. 2017.
    """

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        log_q = student.logits.float().log_softmax(-1)
        return (log_q.exp() * log_q).sum(-1).mean()

    def identity(self):
        return "confidence penalty"


class LogitTerm(Term):
    """A function or module of logits as a term.

    Args:
        loss: ``loss(student_logits, teacher_logits)`` or ``loss(student_logits, teacher_logits,
            labels)``, which returns a scalar tensor.
        name, values: what tells its runs from others (values that JSON knows), beside the numbers
            and words that a function reads from outside itself. The author of a loss changes one of
            them when the loss changes: its source is not looked at. The package's own losses name
            themselves.
    """

    def __init__(self, loss: Callable, *, name: str | None = None, **values):
        super().__init__()
        self.loss, self.name, self.values = loss, name, values
        self.takes_labels = _takes_labels(loss)

    def forward(self, student: Output, teacher: Output, labels: Tensor) -> Tensor:
        labels = (labels,) if self.takes_labels else ()
        return self.loss(student.logits, teacher.logits, *labels)

    def identity(self):
        if self.name is None and isinstance(self.loss, _LOSSES):
            return repr(self.loss)
        return _named(self)


class FeatureTerm(Term):
    """A loss between one feature of the student and one of the teacher.

    Args:
        loss: ``loss(student_feature, teacher_feature)``, which returns a scalar tensor.
        student, teacher: the modules whose outputs are compared, by their names in
            ``network.named_modules()``; with ``:input`` behind it, what goes into a module, so
            that ``"classifier:input"`` are the penultimate features.
        project: a module for the student's feature, trained with the student (a 1x1 convolution,
            a linear layer); None compares as it is.
        name, values: as for ``LogitTerm``.
    """

    def __init__(
        self,
        loss: Callable,
        student: str,
        teacher: str,
        *,
        project: nn.Module | None = None,
        name: str | None = None,
        **values,
    ):
        super().__init__()
        self.loss, self.name, self.values = loss, name, values
        self.project = nn.Identity() if project is None else project
        self.student_features, self.teacher_features = (student,), (teacher,)

    def pair(self, student: Output, teacher: Output) -> tuple[Tensor, Tensor]:
        """The student's feature and the teacher's, in float32, as the networks gave them."""
        feature = student.features[self.student_features[0]]
        return feature.float(), teacher.features[self.teacher_features[0]].detach().float()

    def forward(self, student: Output, teacher: Output, labels: Tensor) -> Tensor:
        feature, target = self.pair(student, teacher)
        return self.loss(self.project(feature), target)

    def identity(self):
        places = [*self.student_features, *self.teacher_features]
        return [_named(self), places, repr(self.project)]


class Objective(nn.Module):
    """A weighted sum of named terms: ``objective(student, teacher, labels)`` gives them by name.

    Args:
        terms: by name, the weight and the term: a ``Term``, or what ``LogitTerm`` takes. A run's
            history has a column ``<name>_loss`` for each, and ``loss``, the weighted sum.

    Raises:
        ValueError: no terms, a weight below 0 or not finite, a name that is no identifier.

        Objective({"ce": (1, CrossEntropy()), "distill": (36, TTMLoss(4.0)), "hint": (10, fitnet)})
    """

    def __init__(self, terms: Mapping[str, tuple[float, Callable]]):
        super().__init__()
        if not terms:
            raise ValueError("an objective needs at least one term")
        self.weights, self.terms = {}, nn.ModuleDict()
        for name, (weight, term) in terms.items():
            if not name.isidentifier() or not 0 <= weight < float("inf"):
                raise ValueError(
                    f"term {name!r} with weight {weight!r}: give a name of letters and digits and "
                    "a finite weight of at least 0"
                )
            self.weights[name] = float(weight)
            self.terms[name] = term if isinstance(term, Term) else LogitTerm(term)
        terms = self.terms.values()
        self.student_features = sorted({name for term in terms for name in term.student_features})
        self.teacher_features = sorted({name for term in terms for name in term.teacher_features})

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> dict[str, Tensor]:
        return {name: term(student, teacher, labels) for name, term in self.terms.items()}

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of what ``forward`` gave."""
        weighted = [self.weights[name] * value for name, value in terms.items()]
        return sum(weighted[1:], start=weighted[0])

    def identity(self):
        """What tells this objective from others, in values that JSON knows."""
        return {name: [self.weights[name], term.identity()] for name, term in self.terms.items()}


def make_objective(
    method, *, temperature: float | None, ce_weight: float, distill_weight: float | None
) -> Objective:
    """The objective behind a method: a name, a term, or an objective, which is copied.

    Every student gets a copy of its own, since its parts are trained.
    """
    if isinstance(method, Objective):
        return copy.deepcopy(method)
    terms = {"ce": (ce_weight, CrossEntropy())}
    if method != "ce":
        term = METHODS[method](temperature) if isinstance(method, str) else copy.deepcopy(method)
        terms["distill"] = distill_weight, term
    return Objective(terms)


def name_of(method) -> str:
    """A method's name for tables and run folders."""
    if isinstance(method, str):
        return method.upper() if method in ("ce", *METHODS) else method
    if isinstance(method, Term) and getattr(method, "name", None):
        return method.name
    if isinstance(method, LogitTerm):
        return name_of(method.loss)
    if isinstance(method, StandardizedLoss):
        return f"{name_of(method.loss)}+STD"
    if isinstance(method, _LOSSES):
        return type(method).__name__.removesuffix("Loss")
    return getattr(method, "__qualname__", None) or type(method).__qualname__


@contextmanager
def recorded(network: nn.Module, names: Sequence[str]):
    """A context that records the outputs (with ``:input``, the inputs) of named modules, by name.

    A feature that a later layer changes in place is recorded as changed. Raises ``ValueError`` for
    a name that the network does not have.
    """
    features = {}
    known = dict(network.named_modules()) if names else {}
    with ExitStack() as hooks:
        for name in names:
            path, _, side = name.partition(":")
            if path not in known or side not in ("", "input"):
                raise ValueError(
                    f"{type(network).__name__} has no module {name!r}; it has "
                    f"{', '.join(k for k in known if k and '.' not in k)} and what is inside them"
                )

            def keep(_module, inputs, output, name=name, before=side == "input"):
                features[name] = inputs[0] if before else output

            hooks.enter_context(known[path].register_forward_hook(keep))
        yield features


def _takes_labels(loss: Callable) -> bool:
    """Whether a loss wants labels: unless it requires two arguments, or where it does not say."""
    if isinstance(loss, StandardizedLoss):
        loss = loss.loss
    try:
        parameters = inspect.signature(getattr(loss, "forward", loss)).parameters.values()
    except (TypeError, ValueError):
        return True
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds and p.default is p.empty for p in parameters) != 2


def _named(term: LogitTerm | FeatureTerm):
    if not term.name:
        raise ValueError(
            f"{name_of(term.loss)} has no name of its own, so its run could not be told from "
            f"others: write {type(term).__name__}(..., name=..., and the values that change it), "
            "or pass folder=None"
        )
    values = {}
    if inspect.isfunction(term.loss):  # numbers and words that it reads from outside change it, too
        outside = inspect.getclosurevars(term.loss)
        read = outside.globals | outside.nonlocals
        values = {k: v for k, v in read.items() if isinstance(v, int | float | str)}
    values |= term.values
    return [term.name, values] if values else term.name
