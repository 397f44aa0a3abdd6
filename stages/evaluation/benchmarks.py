"""The benchmarks, asked of one checkpoint: every item becomes a row of predictions.

Multiple-choice questions are asked as protocols.py words them. The built-in skills are asked four ways: as a
chat turn whose greedy answer is read, after worked examples without chat markup (the fair way to ask a base
model), as a choice between given answers, and by the form of the answer. A question without choices is
answered as a chat turn, and scored where the data holds an answer or rules for one, or by a judge.
"""

import json
import math
from collections import Counter, defaultdict
from itertools import repeat
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from stages.builtin import skills
from stages.evaluation import health, protocols
from stages.evaluation.candidate import Candidate
from stages.evaluation.protocols import Request
from stages.judge import instructions
from stages.judge.answered import Answered
from stages.judge.judges import Judge
from stages.model.generation import Answer
from stages.settings.params import Evaluate

FOLDER = Path("data/raw/benchmarks")
WORKED = 3  # examples
UNSUPPORTED = "unsupported_instruction"
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


def ask(
    candidate: Candidate, name: str, settings: Evaluate, held_out: list[dict], judge: Judge | None = None
) -> list[dict]:
    """A row of predictions for every item of a benchmark, and for every further score of its answer. Rows of
    `held_out` instructions are the worked examples of questions that bring none.
    """
    items, rows = load(name, settings.split)
    if name == "skills":
        return ask_skills(candidate, items, rows)
    closed, open_ = (
        [item for item in items if item["choices"]],
        [item for item in items if not item["choices"]],
    )
    examples = protocols.examples_for(name, settings.style, rows, settings.shots)
    found = ask_open(candidate, name, open_, judge)
    if candidate.name == "base" and name not in protocols.OPEN:
        found += ask_worked(candidate, name, open_, worked_examples(candidate, held_out))
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


def wording(name: str, settings: Evaluate, judge: Judge | None = None) -> dict:
    """How its questions are put, for the record."""
    if name == "skills":
        return {"shots": WORKED, "chat": True}
    if name in protocols.OPEN:
        how, judged = protocols.OPEN[name], {"judge": judge.record} if judge else {}
        return {"chat": True, "shots": 0, "wording_of": how.task, "max_new_tokens": how.tokens, **judged}
    how = protocols.protocol(name, settings.style)
    equal = f"{protocols.HARNESSES[settings.style]}, {how.task}" if how.task and not settings.chat else None
    return {
        "style": settings.style, "language": how.language, "answers": how.answers,
        "normalised_by": how.normalise, "context": how.context,
        "shots": shots_given(name, settings), "chat": settings.chat, "rotate": settings.rotate,
        "equals": equal,
    }  # fmt: skip


def shots_given(name: str, settings: Evaluate) -> int | str:
    """Worked examples that its questions have: fewer than asked for where its dev split holds fewer."""
    if not settings.shots:
        return 0
    items, rows = load(name, settings.split)
    examples = protocols.examples_for(name, settings.style, rows, settings.shots)
    counts = sorted({len(examples(item)) for item in items if item["choices"]}) or [0]
    return counts[0] if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


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
    # Items on one passage are answered right or wrong together: their standard errors are clustered by it.
    shared = {"source": benchmark, "item": item["id"], "cluster": item.get("context", "")}
    return {"benchmark": benchmark} | shared | {name: item[name] for name in copied}


# --- an answer in words -------------------------------------------------------------------------------------


def ask_open(candidate: Candidate, name: str, items: list[dict], judge: Judge | None = None) -> list[dict]:
    """Scored by the rules that an item brings; else by exact match and F1 where there are references, and by
    the judge if there is one, which alone scores what its harness has judged. Where there is nothing, the
    answers are there to be read.
    """
    how = protocols.OPEN.get(name)
    put = how.wording if how else protocols.open_question
    prompts = [candidate.chat(put(item)) for item in items]
    answers = candidate.answers(prompts, name, limit=how.tokens if how else None)
    pairs = [(item, answer) for item, answer in zip(items, answers) if not item.get("rules")]
    verdicts = iter(judged(judge, name, pairs)) if judge and pairs else repeat(None)
    rows = []
    for item, answer in zip(items, answers):
        row, references = row_of(name, item) | {"answer": answer.text}, item["references"] or []
        if item.get("rules"):
            rows += by_rules(row | answered(answer), item)
            continue
        if references:
            row["reference"] = references[0]
        if how:
            rows.append(row | answered(answer) | {"score": next(verdicts)})
            continue
        if references:
            row["score"] = health.exact_match(answer.text, references)
            rows.append(row | {"benchmark": f"{name}_f1", "score": health.f1(answer.text, references)})
        rows.append(row | answered(answer))
        if judge:
            rows.append(row | {"benchmark": f"{name}_judged", "score": next(verdicts)})
    return rows


def worked_examples(candidate: Candidate, held_out: list[dict]) -> list[tuple[str, str]]:
    """Questions and answers of held-out instructions: single turns answered in a line, of middle length."""
    found = []
    for row in sorted(held_out, key=lambda row: row["tokens"]):
        question = candidate.template.question(row["prompt"])
        answer = row["completion"].removesuffix(candidate.template.stop).strip()
        if question and "\n" not in answer:
            found.append((question, answer))
    middle = max(0, len(found) - WORKED) // 2
    return found[middle : middle + WORKED]


def ask_worked(
    candidate: Candidate, name: str, items: list[dict], examples: list[tuple[str, str]]
) -> list[dict]:
    """Questions with references once more, after worked examples and without chat markup, of which a base
    model knows nothing: asked as a chat it repeats the question, which is no measure of what it knows.
    """
    items = [item for item in items if item["references"]] if examples else []
    prompts = [few_shot(protocols.open_question(item), examples) for item in items]
    rows = []
    for item, answer in zip(
        items, candidate.answers(prompts, f"{name}, worked examples", candidate.line_ends)
    ):
        row = row_of(name, item) | {"answer": answer.text, "reference": item["references"][0]}
        for kind, score in (("", health.exact_match), ("_f1", health.f1)):
            known = {
                "benchmark": f"{name}_worked_examples{kind}",
                "score": score(answer.text, item["references"]),
            }
            rows.append(row | known | (answered(answer) if not kind else {}))
    return rows


def by_rules(row: dict, item: dict) -> list[dict]:
    """IFEval's four scores: of a prompt whether all its instructions are kept, and of each instruction
    whether it is, strictly and loosely. An item with an instruction that no rule checks has a fault.
    """
    try:
        strict, loose = instructions.check(item["question"], item["rules"], row["answer"])
    except instructions.Unsupported as unsupported:
        return [row | {"fault": row["fault"] or UNSUPPORTED, "reference": str(unsupported)}]
    short = {name: value for name, value in row.items() if name not in ("tokens", "stopped")}
    rows = [row | {"score": float(all(strict))}]
    rows += [short | {"benchmark": f"{row['benchmark']}_loose", "score": float(all(loose))}]
    for kind, kept in (("instructions", strict), ("instructions_loose", loose)):
        for number, (rule, one) in enumerate(zip(map(json.loads, item["rules"]), kept), 1):
            rows.append(
                short
                | {"benchmark": f"{row['benchmark']}_{kind}", "id": f"{item['id']}.{number}"}
                | {"subject": rule["id"], "cluster": item["id"], "score": float(one)}
            )
    return rows


def judged(judge: Judge, name: str, pairs: list[tuple[dict, Answer]]) -> list[float | None]:
    """The judge's number for each answer; None where it gave no verdict."""
    how = protocols.OPEN.get(name)
    show = how.judged if how else protocols.open_question
    given = [Answered(show(item), answer.text, item["references"] or []) for item, answer in pairs]
    return judge.scores(given, name)


def shot_notes(wording: dict[str, dict], settings: Evaluate) -> list[str]:
    """Of which benchmarks `evaluate.shots` could not be had."""
    return [
        f"{name}: evaluate.shots is {settings.shots}, its dev split holds {how['shots']} for a question"
        for name, how in wording.items()
        if "style" in how and how["shots"] != settings.shots
    ]


def notes(rows: list[dict], judge: Judge | None) -> list[str]:
    """What was asked and has no score, though it should, and why."""
    asked, unscored = Counter(), Counter()
    for row in rows:
        if row["benchmark"] in protocols.OPEN:
            asked[row["benchmark"]] += 1
            unscored[row["benchmark"]] += row["score"] is None and row["fault"] is None
    faults = [row for row in rows if row["fault"] == UNSUPPORTED]
    found = [
        f"{name}: {count:,} of {asked[name]:,} answers have no score: "
        + ("the judge gave no verdict" if judge else "name a judge in evaluate.judge")
        for name, count in unscored.items()
        if count
    ]
    if faults:
        found.append(
            f"{len(faults):,} items ask for what no rule checks; {faults[0]['id']}: {faults[0]['reference']}"
        )
    return found


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
    shots = [
        few_shot(
            item["question"],
            [(shot["question"], right_answer(shot)) for shot in examples[item["subject"]][:WORKED]],
        )
        for item in items
    ]
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


def few_shot(question: str, examples: list[tuple[str, str]]) -> str:
    """Worked examples, then the question, in plain text."""
    return "".join(f"سؤال: {asked}\nجواب: {said}\n" for asked, said in examples) + f"سؤال: {question}\nجواب:"


def right_answer(item: dict) -> str:
    return item["choices"][item["answer"]]


def is_right(item: dict, text: str) -> bool:
    """Exact match of what the answer says, in either of the two good forms."""
    return skills.content(text.strip()) == right_answer(item)
