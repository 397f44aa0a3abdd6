"""The published datasets: how a row of each becomes a row in one of our three layouts, and under which
licence.

instructions: prompt [{role, content}], completion [{role, content}]
preferences:  prompt, chosen, rejected (message lists); of a single vote one of the two is empty: the answer
              was called good, or bad
benchmarks:   question, context, choices, answer (index), references (texts, of a question without choices),
              rules (what an answer must keep to, each {"id", "arguments"} as JSON), subject, group, level,
              country

Every layout also has source, id (dataset:row number), task, split, and for a row that cannot be used fault
(the reason), detail and original. A benchmark item that can be asked but should not count has a fault and its
cells. To add a dataset in code, add an entry to ADAPTERS; one with plain columns needs none: name them in
params.yaml.
"""

import ast
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from stages.settings.errors import Problem
from stages.settings.params import ROLES, Source

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
LETTERS = {
    letter: index for letters in ("ABCDE", "abcde", "أبجده", "ابجده") for index, letter in enumerate(letters)
} | {"هـ": 4}
SPEAKERS = {
    "user": "user",
    "human": "user",
    "مستخدم": "user",
    "المستخدم": "user",
    "إنسان": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatbot": "assistant",
    "مساعد": "assistant",
    "المساعد": "assistant",
    "system": "system",
    "نظام": "system",
    "النظام": "system",
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
        raise Fault("malformed", f"{name} is {type(value).__name__}, not text: {str(value)[:80]!a}")
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


def chat(value: Any, name: str, prompt: Any = None) -> list[dict[str, str]]:
    """A conversation as messages: a list of turns, or its text as JSON or Python would write it. Ends in an
    assistant turn.

    `prompt` is what comes before, text or turns, where the conversation does not repeat it.
    """
    messages = turns(value, name)
    if len(messages) == 1 and not is_null(prompt):
        messages = asked(prompt) + messages
    roles = [message["role"] for message in messages if message["role"] != "system"]
    if len(roles) < 2 or roles[0] != "user" or roles[-1] != "assistant":
        raise Fault(
            "malformed",
            f"{name} is no conversation from a user to an assistant: {', '.join(roles[:6]) or 'no turns'}",
        )
    return messages


def turns(value: Any, name: str) -> list[dict[str, str]]:
    found = parsed(value, name) if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise Fault("malformed", f"{name} is no list of turns: {type(value).__name__} {str(value)[:80]!a}")
    return [message(one, name) for one in found]


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
        raise Fault("malformed", f"{name} is neither JSON nor a Python list: {value[:80]!a}") from None


def message(turn: Row, name: str) -> dict[str, str]:
    role = next((turn[key] for key in ("role", "from", "دور", "الدور") if key in turn), None)
    content = next((turn[key] for key in ("content", "value", "محتوى", "المحتوى") if key in turn), None)
    if not isinstance(role, str) or role.strip().lower() not in SPEAKERS:
        raise Fault("malformed", f"{name} has a turn of role {str(role)[:40]!a}")
    return {"role": SPEAKERS[role.strip().lower()], "content": as_text(content, name)}


def turn(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


# --- layouts ------------------------------------------------------------------------------------------------


def instruction(prompt: str, completion: str, system: str = "") -> Row:
    return {
        "prompt": (turn("system", system) if system else []) + turn("user", prompt),
        "completion": turn("assistant", completion),
    }


def pair(prompt: str, chosen: str, rejected: str) -> Row:
    return {
        "prompt": turn("user", prompt),
        "chosen": turn("assistant", chosen),
        "rejected": turn("assistant", rejected),
    }


def single(prompt: list[dict[str, str]], answer: list[dict[str, str]], good: bool) -> Row:
    return {"prompt": prompt, "chosen": answer if good else [], "rejected": [] if good else answer}


def chat_pair(row: Row, prompt: str = "prompt", chosen: str = "chosen", rejected: str = "rejected") -> Row:
    """Two conversations that differ in their last turn alone: what they share is the prompt."""
    good, bad = (chat(row.get(name), name, row.get(prompt)) for name in (chosen, rejected))
    if good[:-1] != bad[:-1]:
        raise Fault("no_shared_prompt", "chosen and rejected differ before the last turn")
    return {"prompt": good[:-1], "chosen": good[-1:], "rejected": bad[-1:]}


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
    return cells | dict.fromkeys(LABELS, "") | {"subject": subject} | labels


def present(choices: list[str]) -> list[str]:
    """Choices without the empty ones at their end: a table has as many columns as its longest item needs."""
    count = max((i for i, choice in enumerate(choices, 1) if choice.strip()), default=0)
    return choices[:count]


def letter(row: Row, name: str) -> int:
    key = text(row, name).strip().rstrip(".)")
    if key not in LETTERS:
        raise Fault("malformed", f"{name} is {key[:40]!a}, which names no choice")
    return LETTERS[key]


def lettered(row: Row, asked: str, letters: str = "ABCD") -> Row:
    return question(
        text(row, asked),
        [text(row, name) for name in letters],
        letter(row, "answer"),
        optional(row, "subject"),
    )


# --- the datasets -------------------------------------------------------------------------------------------


def instar(row: Row) -> Row:
    """The `system` column is the same English prompt in every row and is left out."""
    return instruction(text(row, "instruction"), text(row, "output"))


PERSONA = re.compile(r"\s*(?:أنت|انت|أنتَ) (?:مساعد|خبير|ذكاء|نموذج|روبوت|معلم|مدرس|كاتب|طبيب)")


def openhermes(row: Row) -> Row:
    """Machine-translated: code was translated with the rest, and in some stretches all turns are shifted by
    one.
    """
    user, answer, system = text(row, "user"), text(row, "gpt"), optional(row, "system_prompt")
    if "```" in user or "```" in answer:
        raise Fault("translated_code", "a code block, whose code was translated with the text")
    if PERSONA.match(user) or (user and user == system):
        raise Fault(
            "shifted_turns",
            "the system prompt stands where the question should, and the question where the answer should",
        )
    if answer.rstrip().endswith(("؟", "?")) and not re.search(r"[؟?]", user) and len(user) > len(answer):
        raise Fault("swapped_turns", "the answer is a question, and what it should answer is the longer text")
    return instruction(user, answer, system)


def arabicqa(row: Row) -> Row:
    """Machine-made. Some rows hold a system prompt in the place of the question, with an answer to something
    else.
    """
    asked = text(row, "question")
    if PERSONA.match(asked):
        raise Fault("shifted_turns", "a system prompt stands where the question should")
    return instruction(asked, text(row, "answer", "response", "output"))


SPOOFING = re.compile(r"\bIP\b|بروتوكول ال[إا]نترنت|[آا]ي ?بي")
COMPUTING = {"computer_security", "college_computer_science", "high_school_computer_science"}


def translated_mmlu(row: Row) -> Row:
    """In 11 % of the rows the question was overwritten by "how is IP spoofing detected?", and only the
    choices remained.
    """
    asked, subject = text(row, "question"), optional(row, "subject")
    if SPOOFING.search(asked):
        genuine = subject in COMPUTING and ("TTL" in row_text(row) or not re.search("كشف|اكتشاف", asked))
        if not genuine:  # the cells stay: published scores count these items
            return lettered(row, "question") | {
                "fault": "overwritten",
                "detail": "the question was replaced by one about IP spoofing",
            }
    return lettered(row, "question")


def row_text(row: Row) -> str:
    return " ".join(str(value) for value in row.values())


def arabicmmlu(row: Row) -> Row:
    """Absent choices are null. The labels are part of how the benchmark's authors ask: see protocols.py."""
    choices = present([optional(row, f"Option {i}") for i in range(1, 6)])
    labels = {name: optional(row, name.title()) for name in LABELS}
    return question(
        text(row, "Question"), choices, letter(row, "Answer Key"), context=optional(row, "Context"), **labels
    )


def human_mmlu(row: Row) -> Row:
    """`choices` is a list, `answer` counts from 0."""
    choices, answer = row.get("choices"), row.get("answer")
    if not isinstance(choices, list):
        raise Fault("malformed", f"choices is {type(choices).__name__}, no list of choices")
    if not isinstance(answer, int) or isinstance(answer, bool):
        raise Fault("malformed", f"answer is {str(answer)[:40]!a}, no place in the list of choices")
    listed = [as_text(choice, "a choice") for choice in choices]
    return question(text(row, "question"), listed, answer, optional(row, "subject"))


def aratrust(row: Row) -> Row:
    """Three choices, which bring their letters with them; `Answer` is one of أ, ب and ج."""
    choices = [text(row, name) for name in "ABC"]
    return question(
        text(row, "Question"),
        choices,
        letter(row, "Answer"),
        optional(row, "Category") or optional(row, "subject"),
    )


def arab_culture(row: Row) -> Row:
    """A statement that one of three continues as the country would. `options` and `answer_key` hold Latin and
    Arabic letters; the English ones tell the order.
    """
    options, key = (structure(row, name, dict) for name in ("options", "answer_key"))
    choices, letters, right = options.get("text"), options.get("english_keys"), key.get("english_answer_key")
    if not isinstance(choices, list) or not isinstance(letters, list) or len(choices) != len(letters):
        raise Fault("malformed", f"options holds no text for each of english_keys: {str(options)[:80]!a}")
    letters = [str(one).strip() for one in letters]
    if str(right).strip() not in letters:
        raise Fault(
            "malformed", f"answer_key is {str(right)[:40]!a}, which names none of {', '.join(letters)}"
        )
    listed = [as_text(choice, "a choice") for choice in choices]
    labels = {"group": optional(row, "region"), "country": optional(row, "country")}
    return question(
        text(row, "first_statement"),
        listed,
        letters.index(str(right).strip()),
        optional(row, "sub_topic"),
        **labels,
    )


def ifeval(row: Row) -> Row:
    """A prompt and what its answer must keep to: `instruction_id_list`, and `kwargs` for each of them, a list
    or its JSON. Arguments that are null belong to other instructions.
    """
    names, arguments = structure(row, "instruction_id_list", list), structure(row, "kwargs", list)
    if not names or len(names) != len(arguments) or not all(isinstance(name, str) for name in names):
        raise Fault("malformed", f"{len(names)} instructions, {len(arguments)} kwargs: each needs the other")
    given = [one or {} for one in arguments]
    if not all(isinstance(one, dict) for one in given):
        raise Fault("malformed", f"kwargs is no list of objects: {str(arguments)[:80]!a}")
    needed = [{key: value for key, value in one.items() if not is_null(value)} for one in given]
    rules = [{"id": name, "arguments": one} for name, one in zip(names, needed)]
    written = [as_text(json.dumps(rule, ensure_ascii=False, default=str), "kwargs") for rule in rules]
    return question(text(row, "prompt"), [], None) | {"rules": written}


def alrage(row: Row) -> Row:
    """A question, passages to answer it from (`candidates`: a list, or one a line) and the answer wanted."""
    passages = row.get("candidates")
    passages = passages if isinstance(passages, list) else optional(row, "candidates").split("\n")
    given = [as_text(one, "a passage").strip() for one in passages if not is_null(one)]
    context = ", ".join(filter(None, given))
    if not context:
        raise Fault("empty", "candidates holds no passage")
    return question(text(row, "question"), [], None, context=context) | {
        "references": references(row.get("gold_answer"))
    }


def structure(row: Row, name: str, kind: type) -> Any:
    """A cell that holds a list or an object, or its text as JSON or Python would write it."""
    value = row.get(name)
    found = parsed(value, name) if isinstance(value, str) else value
    if not isinstance(found, kind):
        raise Fault("malformed", f"{name} is {type(found).__name__}, no {kind.__name__}: {str(value)[:80]!a}")
    return found


def alghafa(row: Row) -> Row:
    """`label` counts from 0, as text; there are two to five choices."""
    label = str(row.get("label")).strip()
    if not re.fullmatch("[0-4]", label):
        raise Fault("malformed", f"label is {label[:40]!a}, which names no choice")
    choices = present([optional(row, f"sol{i}") for i in range(1, 6)])
    return question(text(row, "query"), choices, int(label), optional(row, "subject"))


def acva(row: Row) -> Row:
    """A statement that is true or false. Some stand twice with both answers: see fetch.contradictions."""
    truths, answer = ["صح", "خطأ"], text(row, "answer").strip()
    if answer not in truths:
        raise Fault("malformed", f"answer is {answer[:40]!a}, neither صح nor خطأ")
    return question(text(row, "question"), truths, truths.index(answer), optional(row, "subject"))


def feedback(row: Row) -> Row | list[Row]:
    """A vote between two answers to one prompt. A tie calls both of them good, "both_bad" calls both bad."""
    answers, vote = row.get("answers"), row.get("vote")
    if (
        not isinstance(answers, list)
        or len(answers) != 2
        or not all(isinstance(answer, dict) for answer in answers)
    ):
        raise Fault("malformed", f"answers is no pair of answers: {str(answers)[:80]!a}")
    first, second = (
        chat(turn("assistant", text(answer, "answer")), "prompt", row.get("prompt")) for answer in answers
    )
    prompt, first, second = first[:-1], first[-1:], second[-1:]
    if vote in ("first", "second"):
        chosen, rejected = (first, second) if vote == "first" else (second, first)
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    if vote in ("tie", "both_bad"):
        return [single(prompt, answer, vote == "tie") for answer in (first, second)]
    raise Fault("malformed", f"vote is {str(vote)[:40]!a}, none of first, second, tie and both_bad")


@dataclass(frozen=True)
class Adapter:
    """How a published layout becomes ours; `convert` gives a list where a published row holds several of
    ours.

    `files` are patterns of the files to take: some repositories hold leftovers of earlier uploads. `task` is
    the column of per-task caps. `note` is what to know before use, above all of licences that the card does
    not tell. `cure` is how its file comes to be.
    """

    role: str
    convert: Callable[[Row], Row | list[Row]]
    note: str = ""
    files: tuple[str, ...] = ("data/*",)
    task: str = ""
    cure: str = ""


ADAPTERS = {
    "cidar": Adapter(
        "instructions",
        lambda row: instruction(text(row, "instruction"), text(row, "output")),
        "Reviewed by Arabic speakers. Its card has said cc-by-nc-4.0 (2024) and apache-2.0 (2025).",
    ),
    "instar-500k": Adapter(
        "instructions",
        instar,
        "Holds CIDAR (twice), ArabicaQA and Aya; nearly half is classification: give rows_per_task.",
        task="task",
    ),
    "openhermes-ar": Adapter(
        "instructions", openhermes, "Machine-translated output of GPT-4: OpenAI's terms may apply."
    ),
    "arabicqa-2_1m": Adapter("instructions", arabicqa, "Machine-made questions and answers."),
    "preference-rlhf": Adapter(
        "preferences",
        lambda row: pair(text(row, "instruction"), text(row, "chosen"), text(row, "rejected")),
        "Its authors state no licence.",
        files=("*.jsonl",),
    ),
    "dpo-mix-7k": Adapter("preferences", chat_pair, "Machine-translated.", task="dataset"),
    "aya-command-r-dpo": Adapter(
        "preferences",
        lambda row: pair(text(row, "prompt"), text(row, "chosen"), text(row, "rejected")),
        "Chosen by people (Aya), rejected from Command R.",
    ),
    "aya-23-dpo": Adapter("preferences", chat_pair, "Chosen by people (Aya), rejected from Aya 23 8B."),
    "feedback": Adapter(
        "preferences",
        feedback,
        "Votes of people on your own checkpoints.",
        ("*.jsonl",),
        cure="vote in `python -m tools.chat --web`",
    ),
    "arabicmmlu": Adapter(
        "benchmarks", arabicmmlu, "Native exams. Its source repository says CC BY-NC-SA 4.0.", ("All/*",)
    ),
    "oall-mmlu": Adapter("benchmarks", translated_mmlu, "Machine-translated.", ("*/test-*", "*/dev-*")),
    "alghafa": Adapter(
        "benchmarks",
        alghafa,
        "Nine sets; mcq_exams_test_ar is Arabic EXAMS: never average both.",
        ("*/test-*", "*/validation-*"),
    ),
    "cidar-mcq": Adapter(
        "benchmarks",
        lambda row: lettered(row, "Question"),
        "100 questions: mind its interval.",
        ("data/test-*",),
    ),
    "cidar-eval": Adapter(
        "benchmarks",
        lambda row: question(text(row, "Sentence"), [], None, optional(row, "Topic")),
        "100 open questions, no references.",
    ),
    "acva": Adapter("benchmarks", acva, "True or false, machine-made.", ("*/test-*", "*/validation-*")),
    "arabic-exams": Adapter(
        "benchmarks",
        lambda row: lettered(row, "question"),
        "School exams.",
        ("data/test-*", "data/validation-*"),
    ),
    "mmlu-ht": Adapter(
        "benchmarks", human_mmlu, "MMLU, translated by people: take it instead of oall-mmlu.", ("*/test-*",)
    ),
    "madinahqa": Adapter(
        "benchmarks", arabicmmlu, "Arabic language, non-commercial licence.", ("*/test*", "*/dev*")
    ),
    "aratrust": Adapter("benchmarks", aratrust, "Native; its authors say MIT.", ("*/train-*", "*/test-*")),
    "arabculture": Adapter("benchmarks", arab_culture, "Native, non-commercial licence.", ("*/test-*",)),
    "arabic-ifeval": Adapter("benchmarks", ifeval, "Answers are checked by rules."),
    "marco-mif": Adapter(
        "benchmarks",
        ifeval,
        "IFEval's prompts, moved to Arab settings; Apache-2.0. Answers are checked by rules.",
        ("*ar_local*", "ar_local/*", "ar/*", "*/ar-*"),
    ),
    "alrage": Adapter("benchmarks", alrage, "Answers from passages, scored by a judge."),
}


# --- a user's own columns -----------------------------------------------------------------------------------

COLUMNS = {  # ours: needed, optional
    "instructions": ({"prompt", "completion"}, {"system", "task"}),
    "preferences": ({"prompt", "chosen", "rejected"}, {"task"}),
    "single votes": ({"prompt", "completion", "label"}, {"task"}),
    "benchmarks": ({"question", "answer"}, {"choices", "context", *LABELS}),
}


def adapter_of(key: str, role: str, source: Source) -> Adapter:
    """How a dataset of a role is read. Raises Problem, with the key of its source, where that cannot be."""
    if source.columns:
        return by_columns(key, ROLES[role], source.columns)
    known = [name for name, adapter in ADAPTERS.items() if adapter.role == ROLES[role]]
    if source.adapter not in known:
        raise Problem(f"{key}.adapter is {source.adapter!r}: for {role} it must be one of {', '.join(known)}")
    return ADAPTERS[source.adapter]


def by_columns(key: str, role: str, columns: dict[str, str | list[str]]) -> Adapter:
    """The adapter of a table whose columns params.yaml names. Raises Problem where a needed one is missing.

    `prompt` may hold a chat list; {messages: …} is a whole conversation whose last turn is the completion.
    Preferences that name a `label` are single votes.
    """
    layout = "single votes" if role == "preferences" and "label" in columns else role
    needed, extra = COLUMNS[layout]
    if role == "instructions" and set(columns) - extra == {"messages"}:
        return Adapter(
            role,
            lambda row: conversation(chat(row.get(columns["messages"]), "messages")),
            "",
            task=columns.get("task", ""),
        )
    if not needed <= set(columns) <= needed | extra:
        wanted, more = (", ".join(sorted(names)) for names in (needed, extra))
        raise Problem(
            f"{key}.columns names {', '.join(columns)}: {layout} need {wanted}; {more} can be added"
        )
    own = {
        "instructions": own_instruction,
        "preferences": own_pair,
        "single votes": own_single,
        "benchmarks": own_question,
    }
    convert = own[layout]
    return Adapter(role, lambda row: convert(row, columns), "", task=columns.get("task", ""))


def conversation(messages: list[dict[str, str]]) -> Row:
    return {"prompt": messages[:-1], "completion": messages[-1:]}


def own_instruction(row: Row, columns: dict) -> Row:
    if isinstance(row.get(columns["prompt"]), list):
        return conversation(
            chat(turn("assistant", text(row, columns["completion"])), "completion", row[columns["prompt"]])
        )
    system = optional(row, columns["system"]) if "system" in columns else ""
    return instruction(text(row, columns["prompt"]), text(row, columns["completion"]), system)


def own_pair(row: Row, columns: dict) -> Row:
    if isinstance(row.get(columns["chosen"]), list):
        return chat_pair(row, columns["prompt"], columns["chosen"], columns["rejected"])
    return pair(*(text(row, columns[name]) for name in ("prompt", "chosen", "rejected")))


def own_single(row: Row, columns: dict) -> Row:
    """An answer and whether it is good: true or false, 1 or 0, or these as text."""
    answer, label = row.get(columns["completion"]), str(row.get(columns["label"])).strip().lower()
    if label not in ("true", "false", "1", "0"):
        raise Fault("malformed", f"{columns['label']} is {label[:40]!a}, neither true nor false")
    answer = answer if isinstance(answer, list) else turn("assistant", text(row, columns["completion"]))
    messages = chat(answer, columns["completion"], row.get(columns["prompt"]))
    return single(messages[:-1], messages[-1:], label in ("true", "1"))


def own_question(row: Row, columns: dict) -> Row:
    """`choices` is a column with a list, or a list of columns; `answer` an index from 0, a letter, or the
    choice itself.

    Without `choices` the question is open, and `answer` the text of the right answer, or a list of those.
    """
    known = {name: optional(row, columns[name]) for name in ("context", *LABELS) if name in columns}
    if "choices" not in columns:
        return question(text(row, columns["question"]), [], None, **known) | {
            "references": references(row.get(columns["answer"]))
        }
    names = columns["choices"]
    found = [row.get(name) for name in names] if isinstance(names, list) else row.get(names)
    if not isinstance(found, list):
        raise Fault("malformed", f"{names} is {type(found).__name__}, not a list of choices")
    choices = present([as_text(choice, "a choice") for choice in found if choice is not None])
    answer = row.get(columns["answer"])
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    elif not isinstance(answer, int) or isinstance(answer, bool):
        answer = letter(row, columns["answer"])
    return question(text(row, columns["question"]), choices, answer, **known)


def references(answer: Any) -> list[str]:
    """One right answer, or a list of texts any of which is right."""
    found = [as_text(one, "an answer") for one in (answer if isinstance(answer, list) else [answer])]
    if not found or not all(one.strip() for one in found):
        raise Fault("empty", "no answer, or an empty one")
    return found
