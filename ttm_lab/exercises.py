"""Exercises in the notebooks: a stub that can stay unsolved, and a check that runs at once."""

from collections.abc import Callable


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
