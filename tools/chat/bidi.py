"""Right-to-left text in terminals, which differ: some order and join Arabic letters themselves, most do not.

isolate   for those that do: each line in a first-strong isolate (U+2068 … U+2069), so that it takes its
          direction from itself
shape     for those that do not: letters joined and lines ordered here, row by row, right-to-left rows at the
          right edge
none      text as it is
"""

import re
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

MODES = ("isolate", "shape", "none")
FIRST_STRONG_ISOLATE, POP_ISOLATE = "\u2068", "\u2069"
# What an answer must not send to a terminal: controls but tab and newline, and marks that change direction
# beyond their line.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
MARKS_FIRST = re.compile("([\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed]+)(\\S)")

# Variable of the environment, how its value begins (or the least number), and what that terminal does. The
# first that fits counts.
TERMINALS = (
    ("TERM", "dumb", "none"),
    ("TERM", "xterm-kitty", "none"),  # orders each word, but not the words; with its force_ltr setting: shape
    ("TERM", "mlterm", "isolate"),
    ("TERM_PROGRAM", "Apple_Terminal", "isolate"),
    ("TERM_PROGRAM", "mintty", "isolate"),
    ("TERM_PROGRAM", "", "shape"),  # vscode, WezTerm, iTerm.app, ghostty, …
    ("WT_SESSION", "", "shape"),
    ("KONSOLE_VERSION", "", "isolate"),
    ("VTE_VERSION", 5800, "isolate"),  # GNOME Terminal and its kin, from 0.58
    (
        "SSH_CONNECTION",
        "",
        "isolate",
    ),  # which tells nothing of the terminal: the usual ones of GNOME, KDE and macOS do it
)


def detected(environment: Mapping[str, str]) -> str:
    """The mode for the terminal that the environment tells of."""
    for name, value, mode in TERMINALS:
        given = environment.get(name)
        if given is not None and (
            given.isdigit() and int(given) >= value if isinstance(value, int) else given.startswith(value)
        ):
            return mode
    return "shape"


def displayed(pieces: Iterable[str], mode: str, width: int) -> Iterator[str]:
    """What to write to a terminal of so many columns for a text that comes in pieces, without a newline at
    its end.
    """
    safe = (UNSAFE.sub("", piece) for piece in pieces)
    if mode == "isolate":
        return isolated(safe)
    return (
        shaped(safe, width - 1) if mode == "shape" else safe
    )  # a terminal may wrap where its last column is written


def isolated(pieces: Iterable[str]) -> Iterator[str]:
    yield FIRST_STRONG_ISOLATE
    for piece in pieces:
        yield piece.replace("\n", f"{POP_ISOLATE}\n{FIRST_STRONG_ISOLATE}")
    yield POP_ISOLATE


def shaped(pieces: Iterable[str], width: int) -> Iterator[str]:
    """Rows in visual order, each as soon as it is full; the direction of a line is that of its first row."""
    end, begins = "", True
    for row in rows(pieces, width):
        if begins:
            direction = "R" if right_to_left(row) else "L"
        yield end + visual(row.strip(), direction, width)
        end, begins = "\n", row.endswith("\n")


def rows(pieces: Iterable[str], width: int) -> Iterator[str]:
    """The rows of a text: each ends with its line, or before the word that would make it too long."""
    rest = ""
    for piece in chain(pieces, ["\n"]):
        rest += piece
        while row := first_row(rest, width):
            yield row
            rest = rest[len(row) :]


def first_row(text: str, width: int) -> str:
    """Empty where the text may go on in it."""
    line, newline, _ = text.partition("\n")
    options = {
        "drop_whitespace": False,
        "replace_whitespace": False,
        "expand_tabs": False,
        "break_on_hyphens": False,
    }
    row = next(iter(textwrap.wrap(line, width, **options)), "")
    return row if len(row) < len(line) else line + newline if newline else ""


def right_to_left(text: str) -> bool:
    """Whether its first strong letter is written so (rules P2 and P3 of the Unicode Bidirectional
    Algorithm).
    """
    strong = (unicodedata.bidirectional(letter) for letter in text)
    return next((kind for kind in strong if kind in ("L", "R", "AL")), "L") != "L"


def visual(row: str, direction: str, width: int) -> str:
    """A row's letters joined and in the order in which a terminal writes them, left to right."""
    from arabic_reshaper import ArabicReshaper
    from bidi.algorithm import get_display  # unlike the package's own, this one mirrors brackets

    joined = ArabicReshaper({"delete_harakat": False}).reshape(row.expandtabs(4))
    ordered = MARKS_FIRST.sub(
        lambda found: found[2] + found[1][::-1], get_display(joined, base_dir=direction)
    )
    columns = sum(not unicodedata.combining(letter) for letter in ordered)
    return " " * (width - columns) + ordered if direction == "R" else ordered
