"""Pairs of a checkpoint's own answers: several to each prompt, judged, the best against the worst →
data/raw/sampled-<checkpoint>/{sampled,answers}.parquet, sources.json.

python -m stages.sample sft     for the preference stage
python -m stages.sample dpo     for passes of refine, where sample.refine says so

With `sample.keep: votes` every answer stands alone, called good or bad.

The prompts are those of the mixture's instructions that passed the gate and stand in no held-out split. What
comes out goes through the gate as every pair does. answers.parquet holds every answer with its score.
"""

import hashlib
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from stages.settings.errors import Problem, one_line_errors
from stages.settings.files import cache, read_json, replace_folder, sha256, write_json
from stages.settings.params import SAMPLED, Params, Sample
from stages.settings.stage import stage
from stages.text.prompts import Message, Template

if TYPE_CHECKING:
    from stages.model.generation import Answer

RAW, FORMATTED = Path("data/raw/instructions"), Path("data/formatted")
TEXT, NUMBER, FLAG = pa.string(), pa.float64(), pa.bool_()
ANSWERS = pa.schema(
    {"prompt_id": TEXT, "prompt": TEXT, "question": TEXT, "reference": TEXT, "answer": TEXT,
        "tokens": pa.int64(), "stopped": FLAG, "score": NUMBER}
)  # fmt: skip


def main(checkpoint: str) -> None:
    with stage("sample", checkpoint) as params, replace_folder(Path(f"data/raw/sampled-{checkpoint}")) as out:
        if not params.sample.prompts:
            write_json(out / "sources.json", {})
            return
        from stages.judge import judges
        from stages.model import device, generation, modeling

        # 1. the judge, and the prompts
        device.require("evaluate")
        judge = judges.open_judge("sample.judge", params.sample.judge)
        prompts = chosen(params, modeling.template_of(params.prompt))

        # 2. the checkpoint's answers, judged
        answers, engine = sampled(params, checkpoint, prompts)
        rows = judged(judge, prompts, answers)
        pairs, lost = PAIRS[params.sample.keep](rows, params.sample, checkpoint)
        if not pairs:
            raise Problem(f"sample: no pair came of {len(prompts):,} prompts: {said(lost)}")
        limit = params.mixture.preferences[SAMPLED].rows
        pairs = pairs if limit == "all" else pairs[:limit]

        # 3. write
        parquet.write_table(pa.Table.from_pylist(pairs, layout()), out / f"{SAMPLED}.parquet")
        parquet.write_table(pa.Table.from_pylist(rows, ANSWERS), out / "answers.parquet")
        made = facts(params, checkpoint, engine, judge.record, len(prompts), len(pairs))
        write_json(out / "sources.json", {SAMPLED: made})
        print(
            f"sample: {checkpoint}: {len(prompts):,} prompts, {len(rows):,} answers, {len(pairs):,} "
            + params.sample.keep
            + (f"; left out: {said(lost)}" if lost else "")
        )
        print(f"sample: {checkpoint}: judge: {judge.report()}")
        stopped = [row["stopped"] for row in rows]
        bounds = [prompt["trained"] for prompt in prompts]
        if note := generation.cut("sample.max_new_tokens", params.sample.max_new_tokens, stopped, bounds):
            print(f"note: {note}")


# --- prompts ------------------------------------------------------------------------------------------------


def chosen(params: Params, template: Template) -> list[dict]:
    """The prompts to answer, in an order that the seed alone decides: messages, the rendered text, and the
    answer that the data has. Says where there are fewer than asked for.
    """
    held_out = {
        row["prompt"]
        for role in ("instructions", "preferences")
        for row in parquet.read_table(FORMATTED / role / "validation.parquet", columns=["prompt"]).to_pylist()
    }
    found = {}
    columns = ["id", "source", "prompt", "completion", "trained"]
    for row in parquet.read_table(FORMATTED / "instructions/train.parquet", columns=columns).to_pylist():
        dataset = row["source"].partition("/")[0]  # of the built-in ones a family follows
        asked = row["prompt"] and row["prompt"] not in held_out  # raw text asks nothing
        if asked and params.sample.dataset in ("all", dataset):
            found.setdefault(row["prompt"], row)
    order = sorted(found.values(), key=lambda row: hashed(f"{params.seed} {row['id']}"))[
        : params.sample.prompts
    ]
    if len(order) < params.sample.prompts:
        print(f"note: sample.prompts is {params.sample.prompts:,}, and there are {len(order):,}")
    messages = conversations(order)
    return [
        {"id": row["id"], "task": row["source"], "prompt": row["prompt"], "messages": messages[row["id"]],
            "reference": row["completion"].removesuffix(template.stop), "trained": row["trained"]}
        for row in order
    ]  # fmt: skip


def conversations(rows: list[dict]) -> dict[str, list[Message]]:
    """The messages that prompts were rendered from, by id: in the raw rows, which the gate reads again."""
    answers, found = {row["id"]: len(row["trained"]) // 2 for row in rows}, {}
    for name in read_json(RAW / "sources.json"):
        with parquet.ParquetFile(RAW / f"{name}.parquet") as file:
            for batch in file.iter_batches(columns=["id", "prompt", "completion"]):
                kept = batch.filter(pc.is_in(batch["id"], pa.array(list(answers))))
                found |= {raw["id"]: before_last(raw, answers[raw["id"]]) for raw in kept.to_pylist()}
    return found


def before_last(raw: dict, answers: int) -> list[Message]:
    """What comes before the last of the answers that are trained: a long conversation has lost some."""
    places = [place for place, one in enumerate(raw["completion"]) if one["role"] == "assistant"]
    return raw["prompt"] + raw["completion"][: places[answers - 1]]


def hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# --- answers ------------------------------------------------------------------------------------------------


def sampled(params: Params, checkpoint: str, prompts: list[dict]) -> "tuple[list[list[Answer]], str]":
    """`sample.answers` to each prompt, and the engine that gave them. They stay in .cache/sample: after a
    kill, or with another judge, no prompt is asked twice.
    """
    from importlib.metadata import version

    from stages.model import device, generation, modeling, vllm_engine

    weights, folder, settings = params.chosen_model.weights, Path("models") / checkpoint, params.sample
    if settings.engine == "vllm":
        vllm_engine.require(folder)
    engine = f"{settings.engine} {version(settings.engine)}"
    how = generation.Sampling(
        settings.answers, settings.temperature, settings.top_p, settings.max_new_tokens, params.seed
    )
    texts, tokenizer = [one["prompt"] for one in prompts], modeling.load_tokenizer(params.prompt)
    stops = tokenizer.convert_tokens_to_ids(modeling.template_of(params.prompt).stops)
    policy, code = modeling.policy_identity(weights, folder), sha256(Path(generation.__file__))
    identity = [policy, code, engine, vars(how), stops, texts]
    wanted = generation.Wanted(texts, tokenizer, how, cache("sample") / hashed(json.dumps(identity))[:16])
    if wanted.known:
        print(f"sample: {checkpoint}: {wanted.known:,} of {len(wanted.rows):,} answers were given before")
    if wanted.left and settings.engine == "vllm":
        vllm_engine.sample(weights, folder, wanted, stops)
    elif wanted.left:
        model = modeling.load_checkpoint(weights, folder).eval()
        print(f"sample: {checkpoint}: {device.described(model)}", flush=True)
        generation.sample(model, wanted, stops, f"sample: {checkpoint}")
    return wanted.answers(stops), engine


def judged(judge, prompts: list[dict], answers: "list[list[Answer]]") -> list[dict]:
    """A row of ANSWERS, and the prompt's messages, for every answer. One that never stopped has no score: it
    would teach to go on.
    """
    from stages.judge.answered import Answered

    rows = [
        {"prompt_id": prompt["id"], "task": prompt["task"], "messages": prompt["messages"],
            "prompt": prompt["prompt"], "question": question(prompt["messages"]),
            "reference": prompt["reference"], "answer": answer.text,
            "tokens": len(answer.tokens), "stopped": answer.stopped, "score": None}
        for prompt, own in zip(prompts, answers)
        for answer in own
    ]  # fmt: skip
    whole = [row for row in rows if row["stopped"] and row["answer"].strip()]
    given = [Answered(row["question"], row["answer"], [row["reference"]]) for row in whole]
    for row, score in zip(whole, judge.scores(given, "sample") if given else []):
        row["score"] = score
    return rows


def question(messages: list[Message]) -> str:
    """What a judge is shown."""
    return "\n\n".join(turn["content"] for turn in messages)


# --- pairs --------------------------------------------------------------------------------------------------


def paired(rows: list[dict], settings: Sample, checkpoint: str) -> tuple[list[dict], Counter]:
    """The best answer of each prompt against its worst, as rows of the preferences layout, and why prompts
    gave none. Of equally good answers the first counts.
    """
    by_prompt, pairs, lost = defaultdict(list), [], Counter()
    for row in rows:
        by_prompt[row["prompt_id"]].append(row)
    for own in by_prompt.values():
        scored = [row for row in own if row["score"] is not None]
        if len(scored) < 2:
            lost["prompts with fewer than two answers with a verdict"] += 1
            continue
        best, worst = (pick(scored, key=lambda row: row["score"]) for pick in (max, min))
        if best["score"] - worst["score"] <= settings.margin:
            lost["prompts of which no answer is better than another"] += 1
            continue
        pairs.append(preference(best, turn(best["answer"]), turn(worst["answer"]), len(pairs), checkpoint))
    return pairs, lost


def voted(rows: list[dict], settings: Sample, checkpoint: str) -> tuple[list[dict], Counter]:
    """Each answer by itself, good from a score of `sample.good` on, else bad: a single vote, as KTO learns
    from. And why answers gave none.
    """
    votes, lost, given = [], Counter(), set()
    for row in rows:
        answer = row["prompt_id"], row["answer"]
        if row["score"] is None:
            lost["answers without a verdict"] += 1
            continue
        if answer in given:  # half of them and more, where a model is sure
            lost["answers given before to the same prompt"] += 1
            continue
        given.add(answer)
        good = row["score"] >= settings.good
        sides = (turn(row["answer"]), []) if good else ([], turn(row["answer"]))
        votes.append(preference(row, *sides, len(votes), checkpoint))
    return votes, lost


PAIRS = {"pairs": paired, "votes": voted}


def preference(
    row: dict, chosen: list[Message], rejected: list[Message], number: int, checkpoint: str
) -> dict:
    return {"prompt": row["messages"], "chosen": chosen, "rejected": rejected, "source": SAMPLED,
            "id": f"sampled-{checkpoint}:{number}", "task": row["task"], "split": "train"}  # fmt: skip


def layout() -> pa.Schema:
    """Of raw preferences: messages as those of the raw instructions, and what all raw rows have."""
    name = next(iter(read_json(RAW / "sources.json")))
    raw = parquet.read_schema(RAW / f"{name}.parquet")
    kind = raw.field("prompt").type
    common = [field for field in raw if field.name not in ("prompt", "completion")]
    return pa.schema([(name, kind) for name in ("prompt", "chosen", "rejected")] + common)


def turn(answer: str) -> list[Message]:
    return [{"role": "assistant", "content": answer}]


def said(lost: Counter) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in lost.items())


def facts(params: Params, checkpoint: str, engine: str, judge: dict, prompts: int, taken: int) -> dict:
    """What the pairs are and who made them, as of every dataset."""
    from stages.model import modeling

    which = f"{params.sample.answers} answers of models/{checkpoint} itself"
    votes = f"Single answers, good from a score of {params.sample.good} on, of {which}."
    return {
        "checkpoint": f"models/{checkpoint}",
        "weights_sha256": modeling.weights_sha256(Path("models") / checkpoint),
        "engine": engine,
        "judge": judge,
        "published": prompts,
        "taken": taken,
        "note": votes if params.sample.keep == "votes" else f"The best and the worst of {which}.",
    }


if __name__ == "__main__":
    with one_line_errors():
        if sys.argv[1:] not in (["sft"], ["dpo"]):
            sys.exit("usage: python -m stages.sample sft|dpo")
        main(sys.argv[1])
