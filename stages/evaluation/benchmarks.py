"""The benchmarks, asked of one checkpoint: every item becomes a row of predictions.

Multiple-choice questions are asked as protocols.py words them. The built-in skills are asked four ways: as a
chat turn whose greedy answer is read, after worked examples without chat markup (the fair way to ask a base
model), as a choice between given answers, and by the form of the answer. A question without choices is
answered as a chat turn, and scored where the data holds an answer.
"""

import math
from collections import defaultdict
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from stages.builtin import skills
from stages.evaluation import health, protocols
from stages.evaluation.candidate import Candidate
from stages.evaluation.protocols import Request
from stages.model.generation import Answer
from stages.settings.params import Evaluate

FOLDER = Path("data/raw/benchmarks")
SKILLS_SHOTS = 3
TEXT, NUMBER, COUNT, FLAG = pa.string(), pa.float64(), pa.int64(), pa.bool_()
SCHEMA = pa.schema({
    "benchmark": TEXT, "id": TEXT, "rotation": COUNT, "subject": TEXT, "group": TEXT, "level": TEXT,
    "country": TEXT,
    "question": TEXT, "reference": TEXT, "answer": TEXT, "score": NUMBER, "picked": COUNT, "gold": COUNT,
    "choices": COUNT,
    "confidence": NUMBER, "logps": pa.list_(NUMBER), "tokens": COUNT, "stopped": FLAG, "chance": NUMBER,
    "leaked": FLAG, "fault": TEXT,
})  # fmt: skip


def complete(row: dict) -> dict:
    """A row of predictions with all its columns; labels that are missing are empty."""
    return (
        dict.fromkeys(SCHEMA.names)
        | dict.fromkeys(("subject", "group", "level", "country"), "")
        | {"rotation": 0}
        | row
    )


def load(name: str, split: str) -> tuple[list[dict], list[dict]]:
    """A benchmark's items of a split, and all its rows, among which are the worked examples (dev)."""
    rows = parquet.read_table(FOLDER / f"{name}.parquet").to_pylist()
    # Only the built-in benchmark has a split to choose settings on.
    wanted = split if any(row["split"] == split for row in rows) else "test"
    return [row for row in rows if row["split"] == wanted and row["question"] is not None], rows


def ask(candidate: Candidate, name: str, settings: Evaluate) -> list[dict]:
    """A row of predictions for every item of a benchmark."""
    items, rows = load(name, settings.split)
    if name == "skills":
        return ask_skills(candidate, items, rows)
    closed, open_ = (
        [item for item in items if item["choices"]],
        [item for item in items if not item["choices"]],
    )
    examples = protocols.examples_for(name, settings.style, rows, settings.shots)
    found = ask_open(candidate, name, open_)
    for rotation in range(
        max((len(item["choices"]) for item in closed), default=0) if settings.rotate else 1
    ):
        turned = [rotated(item, rotation) for item in closed if rotation < len(item["choices"])]
        requests = [protocols.ask(name, item, settings.style, examples(item)) for item in turned]
        found += [
            row | {"rotation": rotation}
            for row in ask_choices(candidate, name, turned, requests, settings.chat)
        ]
    return found


def wording(name: str, settings: Evaluate) -> dict:
    """How its multiple-choice questions are put, for the record."""
    if name == "skills":
        return {"shots": SKILLS_SHOTS, "chat": True}
    how = protocols.protocol(name, settings.style)
    equal = f"{protocols.HARNESSES[settings.style]}, {how.task}" if how.task and not settings.chat else None
    return {
        "style": settings.style, "language": how.language, "answers": how.answers,
        "normalised_by": how.normalise, "context": how.context,
        "shots": settings.shots, "chat": settings.chat, "rotate": settings.rotate, "equals": equal,
    }  # fmt: skip


def rotated(item: dict, by: int) -> dict:
    """The item with its choices moved `by` places to the front."""
    choices, answer = item["choices"], item["answer"]
    return item | {"choices": choices[by:] + choices[:by], "answer": (answer - by) % len(choices)}


# --- a choice between given answers -------------------------------------------------------------------------


def ask_choices(
    candidate: Candidate, name: str, items: list[dict], requests: list[Request], chat: bool
) -> list[dict]:
    """The answer is the option of the highest log-probability, or of that per character where its harness
    compares so.
    """
    questions = [(request.prompt, request.options) for request in requests]
    if chat:
        questions = [
            (candidate.chat(prompt), [option.lstrip() for option in options]) for prompt, options in questions
        ]
    found = candidate.choices(questions, name, apart=chat or any(request.apart for request in requests))
    rows = []
    for item, request, scores in zip(items, requests, found):
        logps = [score.per_character if request.normalise == "characters" else score.logp for score in scores]
        rows.append(row_of(name, item) | choice_of(item, logps))
    return rows


def choice_of(item: dict, logps: list[float]) -> dict:
    picked = logps.index(max(logps))
    return {
        "reference": item["choices"][item["answer"]],
        "answer": item["choices"][picked],
        "score": float(picked == item["answer"]),
        "picked": picked,
        "gold": item["answer"],
        "choices": len(item["choices"]),
        "confidence": 1 / sum(math.exp(logp - logps[picked]) for logp in logps),
        "logps": logps,
        "chance": 1 / len(item["choices"]),
    }


def row_of(benchmark: str, item: dict) -> dict:
    copied = ("id", "subject", "group", "level", "country", "question", "fault")
    return {"benchmark": benchmark, "source": benchmark} | {name: item[name] for name in copied}


# --- an answer in words -------------------------------------------------------------------------------------


def ask_open(candidate: Candidate, name: str, items: list[dict]) -> list[dict]:
    """Scored by exact match and F1 where there are references; where there are none, the answers are there to
    be read.
    """
    prompts = [candidate.chat("\n".join(filter(None, (item["context"], item["question"])))) for item in items]
    rows = []
    for item, answer in zip(items, candidate.answers(prompts, name)):
        row, references = row_of(name, item) | {"answer": answer.text}, item["references"] or []
        if references:
            row |= {"reference": references[0], "score": health.exact_match(answer.text, references)}
            rows.append(row | {"benchmark": f"{name}_f1", "score": health.f1(answer.text, references)})
        rows.append(row | answered(answer))
    return rows


def answered(answer: Answer) -> dict:
    """An answer with its length. A further score of the same answer leaves the length out: lengths count
    answers.
    """
    return {"answer": answer.text, "tokens": len(answer.tokens), "stopped": answer.stopped}


# --- the built-in skills ------------------------------------------------------------------------------------


def ask_skills(candidate: Candidate, items: list[dict], every: list[dict]) -> list[dict]:
    """Content and form of the answers stand side by side: each can be bought with the other."""
    examples = defaultdict(list)
    for row in every:
        if row["split"] == "dev":
            examples[row["subject"]].append(row)
    chats = [candidate.chat(item["question"]) for item in items]
    shots = [few_shot(item, examples[item["subject"]][:SKILLS_SHOTS]) for item in items]
    options = [[candidate.template.complete(choice) for choice in item["choices"]] for item in items]
    rows = []
    for item, answer, worked, scores in zip(
        items,
        candidate.answers(chats, "skills"),
        candidate.answers(shots, "skills, worked examples", candidate.line_ends),
        candidate.choices(list(zip(chats, options)), "skills, choices"),
    ):
        right, sentence = is_right(item, answer.text), skills.is_sentence(answer.text.strip())
        row = row_of("skills", item) | {"reference": right_answer(item)}
        chance = {"chance": skills.FAMILIES[item["subject"]].chance}
        rows += [
            row | answered(answer) | {"score": float(right)} | chance,
            row | {"answer": answer.text, "benchmark": "skills_sentence", "score": float(sentence)},
            row
            | {
                "answer": answer.text,
                "benchmark": "skills_right_sentence",
                "score": float(right and sentence),
            },
            row
            | answered(worked)
            | {"benchmark": "skills_worked_examples", "score": float(is_right(item, worked.text))}
            | chance,
            row | choice_of(item, [score.logp for score in scores]) | {"benchmark": "skills_choice"},
        ]
    return rows


def few_shot(item: dict, examples: list[dict]) -> str:
    """Worked examples of the same subject, then the question, in plain text."""
    shots = [f"سؤال: {shot['question']}\nجواب: {right_answer(shot)}\n" for shot in examples]
    return "".join(shots) + f"سؤال: {item['question']}\nجواب:"


def right_answer(item: dict) -> str:
    return item["choices"][item["answer"]]


def is_right(item: dict, text: str) -> bool:
    """Exact match of what the answer says, in either of the two good forms."""
    return skills.content(text.strip()) == right_answer(item)
