"""Our three layouts, and how the cells and turns of real tables become theirs.

instructions: prompt [{role, content}], completion [{role, content}]: from the first answer that is trained to
              the last one; of raw text the prompt is empty, and the completion one turn of the role "text"
preferences:  prompt, chosen, rejected (message lists); of a single vote one of the two is empty: the answer
              was called good, or bad
benchmarks:   question, context, choices, answer (index), references (texts, of a question without choices),
              rules (what an answer must keep to, each {"id", "arguments"} as JSON), subject, group, level,
              country

Every layout also has source, id (dataset:row number), task, split, and for a row that cannot be used fault
(the reason), detail and original. A benchmark item that can be asked but should not count has a fault and its
cells; a detail without a fault says what of the row is left out.
"""

import ast
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from string import ascii_lowercase, ascii_uppercase
from typing import Any

import pyarrow as pa

from stages.settings.errors import one_line

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
TEXT = pa.string()
LAYOUTS = {
    "instructions": {"prompt": MESSAGES, "completion": MESSAGES},
    "preferences": {"prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES},
    "benchmarks": {
        "question": TEXT,
        "context": TEXT,
        "choices": pa.list_(TEXT),
        "answer": pa.int64(),
        "references": pa.list_(TEXT),
        "rules": pa.list_(TEXT),
        "subject": TEXT,
        "group": TEXT,
        "level": TEXT,
        "country": TEXT,
    },
}
LABELS = ("subject", "group", "level", "country")  # of a benchmark item, "" where it has none
COMMON = {
    "source": TEXT,
    "id": TEXT,
    "task": TEXT,
    "split": TEXT,
    "fault": TEXT,
    "detail": TEXT,
    "original": TEXT,
}
SCHEMAS = {role: pa.schema(layout | COMMON) for role, layout in LAYOUTS.items()}

Row = dict[str, Any]
ABJAD = "أ ب ج د ه و ز ح ط ي ك ل م ن س ع ف ص ق ر ش ت ث خ ذ ض ظ غ".split()
HIJAI = "أ ب ت ث ج ح خ د ذ ر ز س ش ص ض ط ظ ع غ ف ق ك ل م ن ه و ي".split()  # the order of dictionaries


def letter_places(arabic: list[str]) -> dict[str, int]:
    """The choice that each letter names, from 0."""
    orders = (ascii_uppercase, ascii_lowercase, arabic)
    found = {letter: place for order in orders for place, letter in enumerate(order)}
    return found | {"ا": found["أ"], "هـ": found["ه"]}


LETTERS = letter_places(ABJAD)
SPEAKERS = {
    name: role
    for role, names in {
        "system": "system developer نظام النظام",
        "user": "user human prompter مستخدم المستخدم إنسان",
        "assistant": "assistant gpt chatgpt chatbot bot ai model function_call مساعد المساعد بوت",
        "tool": "tool ipython function observation tool_response أداة",
    }.items()
    for name in names.split()
}


class Fault(Exception):
    """A published row that cannot be used: (reason, what is wrong with it)."""


# --- cells --------------------------------------------------------------------------------------------------


def text(row: Row, *names: str) -> str:
    """The text of the first of these columns that the row has. Raises Fault for null, another type or half a
    character.
    """
    name = next((name for name in names if name in row), None)
    if name is None:
        raise Fault(
            "malformed", f"no column {' or '.join(names)}; the row has {', '.join(map(str, row))[:200]}"
        )
    return as_text(row[name], name)


def is_null(value: Any) -> bool:
    return value is None or value != value  # NaN is what pandas makes of null


def as_text(value: Any, name: str) -> str:
    if is_null(value):
        raise Fault("empty", f"{name} is null")
    if not isinstance(value, str):
        raise Fault("malformed", f"{name} is {type(value).__name__}, not text: {str(value)[:80]!r}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Fault(
                "malformed", f"{name} holds half of a surrogate pair, which is no character"
            ) from None
    return value


def optional(row: Row, name: str) -> str:
    """The same, with "" for a column that is missing or null."""
    value = row.get(name)
    return "" if is_null(value) else as_text(value, name)


def written(value: Any, name: str) -> str:
    """Text, or a number as text: 3 of 3.0, which is what pandas makes of a 3 in a column with gaps."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    number = isinstance(value, (int, float, Decimal)) and not isinstance(value, bool) and not is_null(value)
    return as_text(str(value) if number else value, name)


def chat(value: Any, name: str, before: Any = None) -> list[dict[str, str]]:
    """A conversation as messages: a list of turns, or its text as JSON or Python would write it.

    `before` is what comes before, text or turns, where the conversation does not repeat it.
    """
    messages = turns(value, name)
    return conversational(messages if is_null(before) or asks(messages) else asked(before) + messages, name)


def asks(messages: list[dict[str, str]]) -> bool:
    return any(message["role"] == "user" for message in messages)


def conversational(messages: list[dict[str, str]], name: str) -> list[dict[str, str]]:
    """The messages, if an assistant answers a user in them; raises Fault where none does."""
    roles = [message["role"] for message in messages]
    if "assistant" not in roles or not asks(messages[: last_answer(messages)]):
        raise Fault(
            "malformed",
            f"{name} is no conversation from a user to an assistant: {', '.join(roles[:6]) or 'no turns'}",
        )
    return messages


def before_empty(messages: list[dict[str, str]]) -> tuple[list[dict[str, str]], Row]:
    """A conversation up to its first empty turn, where somebody was answered until there; what comes after it
    is left out, and said.
    """
    empty = next((place for place, turn in enumerate(messages) if not turn["content"].strip()), None)
    whole = messages[:empty]
    answers = [place for place, turn in enumerate(whole) if turn["role"] == "assistant"]
    if empty is None or not answers or not asks(whole[: answers[-1]]):
        return messages, {}
    return whole, {"detail": "turns from an empty one on are left out"}


def last_answer(messages: list[dict[str, str]]) -> int:
    return max(place for place, message in enumerate(messages) if message["role"] == "assistant")


def answered(messages: list[dict[str, str]]) -> tuple[list, list, Row]:
    """A conversation as what stands before its last answer, and that answer; what comes after it is left out,
    and said.
    """
    last = last_answer(messages)
    left_out = {"detail": "turns after the last answer are left out"} if last + 1 < len(messages) else {}
    return messages[:last], messages[last : last + 1], left_out


def conversation(messages: list[dict[str, str]]) -> Row:
    """A conversation all of whose answers are trained: those that follow on a turn of the user's."""
    prompt, completion, left_out = answered(messages)
    messages = prompt + completion
    first = next(place for place, one in enumerate(messages) if one["role"] == "user")
    while messages[first]["role"] != "assistant":
        first += 1
    return {"prompt": messages[:first], "completion": messages[first:]} | left_out


def last_answer_alone(row: Row) -> Row:
    """The same conversation, of whose answers the last one is trained."""
    if "completion" not in row:
        return row  # it cannot be used
    *before, last = row["completion"]
    return row | {"prompt": row["prompt"] + before, "completion": [last]}


def turns(value: Any, name: str) -> list[dict[str, str]]:
    """Turns as messages. An empty system turn is none; answers of tools are one user turn, as in Qwen's own
    template.
    """
    found = parsed(value, name) if isinstance(value, str) else value
    if isinstance(found, dict):  # one turn, or a struct of lists, which is how a hub's Sequence keeps turns
        lists = bool(found) and all(isinstance(cells, list) for cells in found.values())
        found = [dict(zip(found, cells)) for cells in zip(*found.values())] if lists else [found]
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise Fault("malformed", f"{name} is no list of turns: {type(value).__name__} {str(value)[:80]!r}")
    messages = []
    for one in found:
        role, content = speaker(one, name), content_of(one, name)
        if role == "system" and not content.strip():
            continue
        if role == "tool":
            role, content = "user", f"<tool_response>\n{content}\n</tool_response>"
            if messages and messages[-1]["content"].endswith("</tool_response>"):
                messages[-1]["content"] += f"\n{content}"
                continue
        messages.append({"role": role, "content": content})
    return messages


def asked(prompt: Any) -> list[dict[str, str]]:
    """A prompt as messages: text is one user turn, a chat list stays as it is."""
    return turns(prompt, "prompt") if isinstance(prompt, list) else turn("user", as_text(prompt, "prompt"))


def parsed(value: str, name: str) -> Any:
    """A serialised list. numpy's repr leaves the commas between turns out."""
    try:
        return json.loads(as_text(value, name))
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(re.sub(r"\}\s+\{", "}, {", value))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        raise Fault("malformed", f"{name} is neither JSON nor a Python list: {value[:80]!r}") from None


def speaker(turn: Row, name: str) -> str:
    """system, user, assistant or tool."""
    role = next((turn[key] for key in ("role", "from", "دور", "الدور") if key in turn), None)
    if not isinstance(role, str) or role.strip().lower() not in SPEAKERS:
        raise Fault("malformed", f"{name} has a turn of role {str(role)[:40]!r}")
    return SPEAKERS[role.strip().lower()]


def content_of(turn: Row, name: str) -> str:
    """The text of a turn: of its parts, where it has such, and its calls of tools as Qwen's own template
    writes them.
    """
    content = next((turn[key] for key in ("content", "value", "محتوى", "المحتوى") if key in turn), None)
    if isinstance(content, list):
        content = "\n".join(part_of(part, name) for part in content)
    given = turn.get("tool_calls")
    calls = [called(call, name) for call in given] if isinstance(given, list) else []
    if is_null(content) and any(key in turn for key in ("content", "value", "محتوى", "المحتوى")):
        content = ""  # an empty turn, or one of calls alone
    text = as_text(content, name)
    if str(turn.get("from", turn.get("role"))).strip().lower() == "function_call":
        text = f"<tool_call>\n{text}\n</tool_call>"
    return "\n".join([text] * bool(text or not calls) + calls)


def part_of(part: Any, name: str) -> str:
    if isinstance(part, dict) and part.get("type", "text") == "text" and "text" in part:
        return as_text(part["text"], name)
    if isinstance(part, str):
        return as_text(part, name)
    shown = part.get("type") if isinstance(part, dict) else part
    raise Fault("malformed", f"{name} has a part that is no text: {str(shown)[:40]!r}")


def called(call: Any, name: str) -> str:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Fault("malformed", f"{name} has a call of a tool without its name: {str(call)[:80]!r}")
    arguments = function.get("arguments") or {}
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False, default=str)
    text = f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "arguments": {arguments}}}'
    return f"<tool_call>\n{as_text(text, name)}\n</tool_call>"


def turn(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


# --- layouts ------------------------------------------------------------------------------------------------


def instruction(prompt: str, completion: str, system: str = "") -> Row:
    return {
        "prompt": (turn("system", system) if system.strip() else []) + turn("user", prompt),
        "completion": turn("assistant", completion),
    }


def document(text: str) -> Row:
    """Raw text, all of which is trained."""
    return {"prompt": [], "completion": turn("text", text)}


def pair(prompt: str, chosen: str, rejected: str) -> Row:
    return {
        "prompt": turn("user", prompt),
        "chosen": turn("assistant", chosen),
        "rejected": turn("assistant", rejected),
    }


def single(prompt: list[dict[str, str]], answer: list[dict[str, str]], good: bool) -> Row:
    return {"prompt": prompt, "chosen": answer if good else [], "rejected": [] if good else answer}


def chat_pair(row: Row) -> Row:
    """Two conversations that differ in their last answer alone: what they share is the prompt."""
    return compared(*(chat(row.get(name), name, row.get("prompt")) for name in ("chosen", "rejected")))


def compared(chosen: list[dict[str, str]], rejected: list[dict[str, str]]) -> Row:
    (prompt, good, left_out), (other, bad, too) = answered(chosen), answered(rejected)
    if prompt != other:
        raise Fault("no_shared_prompt", "chosen and rejected differ before the last turn")
    return {"prompt": prompt, "chosen": good, "rejected": bad} | left_out | too


def question(
    asked: str, choices: list[str], answer: int | None, subject: str = "", context: str = "", **labels: str
) -> Row:
    if answer is not None and not 0 <= answer < len(choices):
        raise Fault("malformed", f"the answer is choice {answer + 1} of {len(choices)}")
    if not all(choice.strip() for choice in choices):
        raise Fault("empty", f"a choice is empty: {' | '.join(choices)[:200]}")
    if len(set(choices)) < len(choices):
        raise Fault("equal_choices", f"two choices are the same: {' | '.join(choices)[:200]}")
    cells = {"question": asked, "context": context, "choices": choices, "answer": answer}
    labels = dict.fromkeys(LABELS, "") | {"subject": subject} | labels
    return cells | {
        name: one_line(label, 200) for name, label in labels.items()
    }  # tables and plots show them


def present(choices: list[str]) -> list[str]:
    """Choices without the empty ones at their end: a table has as many columns as its longest item needs."""
    count = max((i for i, choice in enumerate(choices, 1) if choice.strip()), default=0)
    return choices[:count]


def references(answer: Any) -> list[str]:
    """One right answer, or a list of texts any of which is right, as SQuAD has them too."""
    answer = answer.get("text") if isinstance(answer, dict) else answer
    found = [written(one, "an answer") for one in (answer if isinstance(answer, list) else [answer])]
    if not found or not all(one.strip() for one in found):
        raise Fault("empty", "no answer, or an empty one")
    return found


def letter(row: Row, name: str) -> int:
    key = text(row, name).strip().rstrip(".)")
    if key not in LETTERS:
        raise Fault("malformed", f"{name} is {key[:40]!r}, which names no choice")
    return LETTERS[key]


def lettered(row: Row, asked: str, letters: str = "ABCD") -> Row:
    return question(
        text(row, asked),
        [text(row, name) for name in letters],
        letter(row, "answer"),
        optional(row, "subject"),
    )


# --- adapters -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adapter:
    """How a published layout becomes ours; `convert` gives a list where a published row holds several of
    ours.

    `files` are patterns of the files to take: some repositories hold leftovers of earlier uploads. `task` is
    the column of per-task caps. `note` is what to know before use, above all of licences that the card does
    not tell. `cure` is how its file comes to be. `named` are the columns that params.yaml names, by its keys,
    where it does. `learn` makes `convert` of all rows, where one row does not tell how it is to be read.
    """

    role: str
    convert: Callable[[Row], Row | list[Row]]
    note: str = ""
    files: tuple[str, ...] = ("data/*",)
    task: str = ""
    cure: str = ""
    named: dict[str, list[str]] = field(default_factory=dict)
    learn: Callable[[Iterable[Any]], Callable[[Row], Row]] | None = None
