"""Datasets whose columns params.yaml names: how a row of a table of one's own becomes ours."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from itertools import cycle
from typing import Any

from stages.settings.errors import Problem
from stages.sources.layouts import (
    HIJAI,
    LABELS,
    LETTERS,
    Adapter,
    Fault,
    Row,
    answered,
    asks,
    before_empty,
    chat,
    compared,
    conversation,
    conversational,
    document,
    is_null,
    letter_places,
    parsed,
    present,
    question,
    references,
    single,
    text,
    turn,
    turns,
    written,
)

BEFORE = {"system", "input", "history"}  # what a prompt can have beside it
COLUMNS = {  # ours: needed, optional
    "instructions": ({"prompt", "completion"}, BEFORE | {"task"}),
    "conversations": ({"messages"}, {"system", "task"}),
    "documents": ({"text"}, {"task"}),
    "preferences": ({"chosen", "rejected"}, BEFORE | {"prompt", "task"}),
    "single votes": ({"prompt", "completion", "label"}, BEFORE | {"task"}),
    "benchmarks": ({"question", "answer"}, {"choices", "context", *LABELS}),
}
SEVERAL = {
    "prompt", "completion", "text", "chosen", "rejected", "system", "input", "question", "context", "choices"
}  # fmt: skip
Columns = dict[str, list[str]]  # of a row's parts; several of one part are joined


def by_columns(key: str, role: str, given: dict[str, str | list[str]], answer_base: int | None) -> Adapter:
    """The adapter of a table whose columns params.yaml names. Raises Problem where a needed one is missing.

    `prompt` may hold a chat list; {messages: …} is a whole conversation, {text: …} a document without turns.
    Preferences that name a `label` are single votes.
    """
    layout = role
    if role == "instructions" and "messages" in given:
        layout = "conversations"
    if role == "instructions" and "text" in given:
        layout = "documents"
    if role == "preferences" and "label" in given:
        layout = "single votes"
    needed, extra = COLUMNS[layout]
    if not needed <= set(given) <= needed | extra:
        wanted, more = (", ".join(sorted(names)) for names in (needed, extra))
        raise Problem(f"{key}.columns names {', '.join(given)}: {layout} need {wanted}; {more} can be added")
    for name, value in given.items():
        if isinstance(value, list) and name not in SEVERAL:
            raise Problem(f"{key}.columns.{name} is {value}: it must be one column")
    columns = {name: [value] if isinstance(value, str) else value for name, value in given.items()}
    convert = {
        "instructions": own_instruction,
        "conversations": own_conversation,
        "documents": own_document,
        "preferences": own_pair,
        "single votes": own_single,
        "benchmarks": own_question,
    }[layout]
    return Adapter(
        role,
        partial(convert, columns=columns),
        task=given.get("task", ""),
        named=columns,
        learn=partial(learned, key, columns, answer_base) if "choices" in columns else None,
    )


# --- cells --------------------------------------------------------------------------------------------------


def cell(row: Row, name: str) -> Any:
    """A cell by the name of its column; `answers.text` is a field of a struct. None where there is none."""
    if name in row:
        return row[name]
    first, _, rest = name.partition(".")
    inner = row.get(first)
    return cell(inner, rest) if rest and isinstance(inner, dict) else None


def joined(row: Row, names: list[str]) -> str:
    """The text of a column; of several, those that have some, with an empty line between. Numbers are written
    out.
    """
    found = [(cell(row, name), name) for name in names]
    if len(names) == 1:
        ((value, name),) = found
        return text(row, name) if value is None else written(value, name)  # text says what is wrong
    parts = [written(value, name) for value, name in found if not is_null(value)]
    parts = [part for part in parts if part.strip()]
    if not parts:
        raise Fault("empty", f"{', '.join(names)} are all empty")
    return "\n\n".join(parts)


def text_or_none(row: Row, names: list[str]) -> str:
    """The same, with "" where there is none."""
    if all(is_null(value) or value == "" for value in (cell(row, name) for name in names)):
        return ""
    return joined(row, names)


def serialised(value: Any) -> Any:
    """A chat list that a table of text holds as JSON or Python would write it, as one; all else as it is."""
    if isinstance(value, str) and SERIALISED.match(value):
        with suppress(Fault):
            return parsed(value, "")
    return value


SERIALISED = re.compile(r"""\s*\[\s*\{\s*["'](?:role|from|content|value)["']\s*:""")


def chat_list(row: Row, names: list[str]) -> Any:
    """What a column holds, where it may be turns; None for columns that are joined."""
    return serialised(cell(row, names[0])) if len(names) == 1 else None


# --- conversations ------------------------------------------------------------------------------------------


def before(row: Row, columns: Columns) -> list[dict[str, str]]:
    """What a row's answer follows on: the turns of its history, and its prompt with what belongs to it."""
    if "prompt" not in columns:
        return past(row, columns)
    names = columns["prompt"] + columns.get("input", [])
    found = chat_list(row, names)
    asked = turns(found, names[0]) if isinstance(found, (list, dict)) else turn("user", joined(row, names))
    return past(row, columns) + asked


def past(row: Row, columns: Columns) -> list[dict[str, str]]:
    """The turns of `history`: pairs of a question and its answer, or a chat list."""
    if "history" not in columns:
        return []
    (name,) = columns["history"]
    found = serialised(cell(row, name))
    if is_null(found) or found == "":
        return []
    if isinstance(found, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in found):
        texts = [written(one, name) for pair in found for one in pair]
        return [{"role": role, "content": one} for role, one in zip(cycle(("user", "assistant")), texts)]
    return turns(found, name)


def answer(row: Row, names: list[str]) -> list[dict[str, str]]:
    """An answer as turns: text, one turn, or a chat list; of several right answers, as SQuAD has them, the
    first.
    """
    found = chat_list(row, names)
    if isinstance(found, dict) and isinstance(found.get("text"), (str, list)):
        found = found["text"]
    if isinstance(found, list) and found and not isinstance(found[0], (dict, list)):
        found = written(found[0], names[0])
    if isinstance(found, (list, dict)):
        return turns(found, names[0])
    return turn("assistant", written(found, names[0]) if isinstance(found, str) else joined(row, names))


def led(row: Row, columns: Columns, messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """A conversation behind the system turn of its row, where it has none of its own."""
    if "system" not in columns or any(message["role"] == "system" for message in messages):
        return messages
    system = text_or_none(row, columns["system"])
    return (turn("system", system) if system.strip() else []) + messages


def own_conversation(row: Row, columns: Columns) -> Row:
    (name,) = columns["messages"]
    messages, left_out = before_empty(led(row, columns, chat(cell(row, name), name)))
    return conversation(messages) | left_out


def answering(row: Row, columns: Columns, name: str) -> list[dict[str, str]]:
    """An answer as a conversation: what it follows on stands in other columns, or before it in its own."""
    messages = answer(row, columns[name])
    messages = messages if asks(messages) else before(row, columns) + messages
    return led(row, columns, conversational(messages, name))


def own_document(row: Row, columns: Columns) -> Row:
    return document(joined(row, columns["text"]))


def own_instruction(row: Row, columns: Columns) -> Row:
    return conversation(answering(row, columns, "completion"))


def own_pair(row: Row, columns: Columns) -> Row:
    return compared(*(answering(row, columns, name) for name in ("chosen", "rejected")))


GOOD, BAD = {"true", "1", "1.0", "chosen"}, {"false", "0", "0.0", "rejected"}


def own_single(row: Row, columns: Columns) -> Row:
    """An answer and whether it is good: true or false, 1 or 0, chosen or rejected, or these as text."""
    (name,) = columns["label"]
    label = str(cell(row, name)).strip().lower()
    if label not in GOOD | BAD:
        raise Fault("malformed", f"{name} is {label[:40]!r}, neither true nor false")
    prompt, given, left_out = answered(answering(row, columns, "completion"))
    return single(prompt, given, label in GOOD) | left_out


# --- benchmarks ---------------------------------------------------------------------------------------------


def learned(key: str, columns: Columns, base: int | None, rows: Iterable[Row]) -> Callable[[Row], Row]:
    """The reader of a benchmark, by what most of its rows make of it: a 2 may be the third choice, the
    second, or the choice "2".

    Raises Problem where answers count from 1 and nothing says so.
    """
    counts, numbers, as_numbers = Counter(), set(), False
    for row in rows:
        with suppress(Fault):
            found, choices = cell(row, *columns["answer"]), choices_of(row, columns)
            counts.update(way for way, read in WAYS.items() if read(found, choices) is not None)
            numbers.add(whole(found))
            as_numbers |= not isinstance(found, str)
    others = max(counts[way] for way in WAYS if way != "from_1")
    if base is None and counts["from_1"] > others and 0 not in numbers:
        raise Problem(
            f"{key}: no answer is 0 and some are as high as there are choices, so they count from 1: add "
            "`answer_base: 1` beside `columns`"
        )
    index = f"from_{base or 0}"
    order = [index, "choice"] if as_numbers else ["choice", index]  # of ways that read as many rows
    order.append("hijai" if counts["hijai"] > counts["letter"] else "letter")
    ways = tuple(sorted(order, key=lambda way: -counts[way]))
    return partial(own_question, columns=columns, ways=ways)


def whole(value: Any) -> int | None:
    """A whole number, as text too, as 2, "2", "٢" or "2.0"."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d{1,3})(?:\.0)?\s*", value)
        return int(found[1]) if found else None
    return int(value) if value == value and abs(value) < 1000 and int(value) == value else None


def at(place: int | None, choices: list[str]) -> int | None:
    return place if place is not None and 0 <= place < len(choices) else None


def numbered(base: int, value: Any, choices: list[str]) -> int | None:
    number = whole(value)
    return None if number is None else at(number - base, choices)


def named(value: Any, choices: list[str]) -> int | None:
    """The place of the choice that an answer writes out."""
    with suppress(Fault):
        wanted = written(value, "answer").strip()
        return next((place for place, choice in enumerate(choices) if choice.strip() == wanted), None)
    return None


def by_letter(order: dict[str, int], value: Any, choices: list[str]) -> int | None:
    return at(order.get(value.strip().strip("().[]:- ")), choices) if isinstance(value, str) else None


WAYS: dict[str, Callable[[Any, list[str]], int | None]] = {
    "choice": named,
    "from_0": partial(numbered, 0),
    "from_1": partial(numbered, 1),
    "letter": partial(by_letter, LETTERS),
    "hijai": partial(by_letter, letter_places(HIJAI)),
}


def choices_of(row: Row, columns: Columns) -> list[str]:
    """The texts of a column with a list, or of several columns."""
    names = columns["choices"]
    found = cell(row, names[0]) if len(names) == 1 else [cell(row, name) for name in names]
    if isinstance(found, dict):  # {text: […], label: […]}
        found = found.get("text")
    if isinstance(found, str):
        found = parsed(found, names[0])
    if not isinstance(found, list):
        raise Fault("malformed", f"{names[0]} is {type(found).__name__}, not a list of choices")
    return present(["" if is_null(choice) else written(choice, "a choice") for choice in found])


def own_question(row: Row, columns: Columns, ways: tuple[str, ...] = ("choice", "from_0", "letter")) -> Row:
    """`answer` is an index, a letter, or the choice itself: as `ways` read it, the first that does.

    Without `choices` the question is open, and `answer` the text of the right answer, or a list of those.
    """
    known = {name: text_or_none(row, columns[name]) for name in ("context", *LABELS) if name in columns}
    asked, found = joined(row, columns["question"]), cell(row, *columns["answer"])
    if "choices" not in columns:
        return question(asked, [], None, **known) | {"references": references(found)}
    choices = choices_of(row, columns)
    places = [place for way in ways if (place := WAYS[way](found, choices)) is not None]
    if not places:
        raise Fault("malformed", f"the answer {str(found)[:40]!r} names none of {len(choices)} choices")
    return question(asked, choices, places[0], **known)
