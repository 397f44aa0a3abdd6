"""The published datasets: how a row of each becomes a row in one of our three layouts (layouts.py), and under
which licence.

To add a dataset in code, add an entry to ADAPTERS; one with plain columns needs none: name them in
params.yaml (columns.py).
"""

import json
import re
from typing import Any

from stages.settings.errors import Problem
from stages.settings.params import ROLES, Source
from stages.sources.columns import by_columns
from stages.sources.layouts import (
    LABELS,
    Adapter,
    Fault,
    Row,
    as_text,
    chat,
    chat_pair,
    instruction,
    is_null,
    letter,
    lettered,
    optional,
    pair,
    parsed,
    present,
    question,
    references,
    single,
    text,
    turn,
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
        raise Fault("malformed", f"answer is {str(answer)[:40]!r}, no place in the list of choices")
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
        raise Fault("malformed", f"options holds no text for each of english_keys: {str(options)[:80]!r}")
    letters = [str(one).strip() for one in letters]
    if str(right).strip() not in letters:
        raise Fault(
            "malformed", f"answer_key is {str(right)[:40]!r}, which names none of {', '.join(letters)}"
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
        raise Fault("malformed", f"kwargs is no list of objects: {str(arguments)[:80]!r}")
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
        raise Fault("malformed", f"{name} is {type(found).__name__}, no {kind.__name__}: {str(value)[:80]!r}")
    return found


def alghafa(row: Row) -> Row:
    """`label` counts from 0, as text; there are two to five choices."""
    label = str(row.get("label")).strip()
    if not re.fullmatch("[0-4]", label):
        raise Fault("malformed", f"label is {label[:40]!r}, which names no choice")
    choices = present([optional(row, f"sol{i}") for i in range(1, 6)])
    return question(text(row, "query"), choices, int(label), optional(row, "subject"))


def acva(row: Row) -> Row:
    """A statement that is true or false. Some stand twice with both answers: see fetch.contradictions."""
    truths, answer = ["صح", "خطأ"], text(row, "answer").strip()
    if answer not in truths:
        raise Fault("malformed", f"answer is {answer[:40]!r}, neither صح nor خطأ")
    return question(text(row, "question"), truths, truths.index(answer), optional(row, "subject"))


def feedback(row: Row) -> Row | list[Row]:
    """A vote between two answers to one prompt. A tie calls both of them good, "both_bad" calls both bad."""
    answers, vote = row.get("answers"), row.get("vote")
    if (
        not isinstance(answers, list)
        or len(answers) != 2
        or not all(isinstance(answer, dict) for answer in answers)
    ):
        raise Fault("malformed", f"answers is no pair of answers: {str(answers)[:80]!r}")
    first, second = (
        chat(turn("assistant", text(answer, "answer")), "prompt", row.get("prompt")) for answer in answers
    )
    prompt, first, second = first[:-1], first[-1:], second[-1:]
    if vote in ("first", "second"):
        chosen, rejected = (first, second) if vote == "first" else (second, first)
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    if vote in ("tie", "both_bad"):
        return [single(prompt, answer, vote == "tie") for answer in (first, second)]
    raise Fault("malformed", f"vote is {str(vote)[:40]!r}, none of first, second, tie and both_bad")


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


def adapter_of(key: str, role: str, source: Source) -> Adapter:
    """How a dataset of a role is read. Raises Problem, with the key of its source, where that cannot be."""
    if source.columns:
        return by_columns(key, ROLES[role], source.columns, source.answer_base)
    known = [name for name, adapter in ADAPTERS.items() if adapter.role == ROLES[role]]
    if source.adapter not in known:
        raise Problem(
            f"{key}.adapter is {source.adapter!r}: for {role} it must be one of {', '.join(known)}; a "
            "dataset of none of these layouts names its `columns` instead"
        )
    return ADAPTERS[source.adapter]
