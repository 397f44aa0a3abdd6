"""What a person is told: a problem in one line with its cure, whatever their encoding, terminal or disk."""

import errno
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress

LONGEST = 1200  # characters of a line; of a longer one the middle is left out, for the cure stands at its end
WRITES_FAIL = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "your disk quota is used up: free some space",
    errno.EROFS: "the disk is read-only: make it writable",
    errno.EACCES: "no permission: make it yours (chown), or run as its owner",
    errno.EPERM: "no permission: make it yours (chown), or run as its owner",
    errno.EIO: "the disk fails to read or write: look at it (dmesg)",
}


class Problem(Exception):
    """Something a person can put right. Shown as one line, without a traceback."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Around all that an entry point does. Ends the process with one line and exit code 1 for a Problem and
    for a disk that cannot be written; with 130 where a person interrupts; silently where nobody reads its
    output any more (`| head`).
    """
    utf8_output()
    try:
        yield
        sys.stdout.flush()
    except Problem as problem:
        raise SystemExit(f"error: {one_line(problem)}") from None
    except KeyboardInterrupt:
        print("error: interrupted: the same command does it again", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        with suppress(OSError, ValueError):  # else Python flushes once more as it ends, and says so
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:
        if why := unwritable(error):
            where = f"{error.filename}: " if getattr(error, "filename", None) else ""
            raise SystemExit(f"error: {one_line(f'{where}{why}, and run the same command again')}") from None
        raise


def unwritable(error: Exception) -> str:
    """Why a disk could not be written, and the cure; "" for any other error. Libraries in Rust and C++ give
    no errno, but the system's words.
    """
    if not isinstance(error, OSError) and type(error).__name__ not in ("SafetensorError", "RuntimeError"):
        return ""
    for number, why in WRITES_FAIL.items():
        if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
            return why
    # How torch.save says it.
    return WRITES_FAIL[errno.ENOSPC] if "inline_container" in str(error) else ""


def utf8_output() -> None:
    """A pipe on Windows and the C locale have encodings without Arabic; a print would end the run."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def one_line(text: object, most: int = LONGEST) -> str:
    """Text of any origin as one line of a terminal: what would move the cursor, paint, or turn the order of
    letters around stands there as its escape.
    """
    line = "".join(map(_visible, " ".join(str(text).split())))
    if len(line) > most:
        line = f"{line[: most // 2]} … {line[-most // 2 :]}"
    return line


def _visible(character: str) -> str:
    turns = "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069"
    if turns or unicodedata.category(character) in ("Cc", "Cs"):
        return character.encode("unicode_escape").decode()
    return character
