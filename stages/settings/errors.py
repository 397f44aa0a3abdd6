"""What a person can put right, said in one line."""

from collections.abc import Iterator
from contextlib import contextmanager


class Problem(Exception):
    """Something a person can put right. Shown as one line, without a traceback."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process with one line and exit code 1 where a Problem is raised inside."""
    try:
        yield
    except Problem as problem:
        raise SystemExit(f"error: {problem}") from None
