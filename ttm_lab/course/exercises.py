"""Exercises in the notebooks: a stub that can stay unsolved, and a check that runs at once."""

from collections.abc import Callable

import numpy as np


class Unsolved(Exception):
    """Raised by an exercise's stub until the reader replaces it; its text is the hint."""


def check(exercise: Callable[[], None]) -> Callable[[], None]:
    """Run an exercise's assertions now and print how it went. Use as a decorator.

    An unsolved stub prints a line and lets the notebook go on, so that Run All passes; a wrong
    answer raises the ``AssertionError`` with its message. The function itself is handed back,
    so that it can be called again.
    """
    name = exercise.__name__.replace("_", " ").capitalize()
    try:
        exercise()
    except Unsolved as hint:
        print(f"{name}: not solved yet. {hint}")
    else:
        print(f"{name}: correct.")
    return exercise


def assert_close(found, wanted, message: str, *, tolerance: float = 1e-4, scale=None) -> None:
    """Raise an ``AssertionError`` that shows both unless an answer is right, whatever its type.

    Numbers, lists, arrays and tensors of any precision count alike. ``tolerance`` is relative to
    ``scale``, by default the largest wanted size: float32, or a search that stops at 1e-6, passes.
    """
    wanted = np.asarray(wanted, dtype=float)
    if found is None:
        raise AssertionError(f"{message}: your function returns nothing (None)")
    try:
        found = found.detach() if hasattr(found, "detach") else found
        numbers = np.asarray(found, dtype=float)
    except (TypeError, ValueError, RuntimeError):
        raise AssertionError(f"{message}: {found!r} cannot be read as numbers") from None
    if wanted.ndim == 0 and numbers.size == 1:
        numbers = numbers.reshape(())
    if numbers.shape != wanted.shape:
        raise AssertionError(f"{message}: your shape {numbers.shape}, wanted {wanted.shape}")
    scale = np.abs(wanted).max() if scale is None else scale
    wrong = ~(np.abs(numbers - wanted) <= tolerance * scale)  # so that NaN is wrong, too
    if wrong.any():
        at = tuple(int(k) for k in np.argwhere(wrong)[0])
        place = f" at {list(at)}" if at else ""
        values = f"yours {numbers[at]:.10g}, wanted {wanted[at]:.10g}"  # digits enough to differ
        raise AssertionError(f"{message}:{place} {values}")
