"""Pairs of a checkpoint's own answers: several to each prompt, judged, the best against the worst →
data/raw/sampled-<checkpoint>/{sampled,answers}.parquet, sources.json.

python -m stages.sample sft     for the preference stage
python -m stages.sample dpo     for passes of refine, where sample.refine says so

The prompts are those of the mixture's instructions that passed the gate and stand in no held-out split. What
comes out goes through the gate as every pair does. answers.parquet holds every answer with its score.
"""

import hashlib
import json
import shutil
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from stages.settings.errors import Problem, one_line_errors
from stages.settings.files import cache, read_json, replace_folder, write_json
from stages.settings.params import SAMPLED, Params
from stages.settings.stage import stage
from stages.text.prompts import Message, Template

if TYPE_CHECKING:
    from stages.model.generation import Answer

RAW, FORMATTED = Path("data/raw/instructions"), Path("data/formatted")
TEXT, NUMBER, FLAG = pa.string(), pa.float64(), pa.bool_()
ANSWERS = pa.schema(
    {"prompt_id": TEXT, "prompt": TEXT, "reference": TEXT, "answer": TEXT, "tokens": pa.int64(),
        "stopped": FLAG, "score": NUMBER}
)  # fmt: skip


def main(checkpoint: str) -> None:
    with stage("sample", checkpoint) as params, replace_folder(Path(f"data/raw/sampled-{checkpoint}")) as out:
        if not params.sample.prompts:
            write_json(out / "sources.json", {})
            return
        from stages.judge import judges
        from stages.model import device, modeling

        # 1. the prompts, and the checkpoint that answers them
        device.require("evaluate")
        judge = judges.open_judge("sample.judge", params.sample.judge)
        template = modeling.template_of(params.prompt)
        prompts = chosen(params, template)
        model = modeling.load_checkpoint(params.chosen_model.weights, Path("models") / checkpoint).eval()
        print(f"sample: {checkpoint}: {device.described(model)}", flush=True)

        # 2. their answers, judged
        answers, kept = sampled(model, params, checkpoint, prompts)
        rows = judged(judge, prompts, answers)
        pairs, lost = paired(rows, params.sample.margin, checkpoint)
        if not pairs:
            raise Problem(f"sample: no pair came of {len(prompts):,} prompts: {said(lost)}")
        limit = params.mixture.preferences[SAMPLED].rows
        pairs = pairs if limit == "all" else pairs[:limit]

        # 3. write
        parquet.write_table(pa.Table.from_pylist(pairs, layout()), out / f"{SAMPLED}.parquet")
        parquet.write_table(pa.Table.from_pylist(rows, ANSWERS), out / "answers.parquet")
        write_json(
            out / "sources.json", {SAMPLED: facts(params, checkpoint, judge.record, len(prompts), pairs)}
        )
        shutil.rmtree(
            kept, ignore_errors=True
        )  # not before: a judge that cannot be reached should cost no answers
        print(
            f"sample: {checkpoint}: {len(prompts):,} prompts, {len(rows):,} answers, {len(pairs):,} pairs"
            + (f"; no pair: {said(lost)}" if lost else "")
        )
        print(f"sample: {checkpoint}: judge: {judge.report()}")


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
            "reference": row["completion"].removesuffix(template.stop)}
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


def sampled(model, params: Params, checkpoint: str, prompts: list[dict]) -> "tuple[list[list[Answer]], Path]":
    """`sample.answers` to each prompt, and the folder that keeps them: what was answered before a kill is not
    asked again.
    """
    from stages.model import generation, modeling

    settings = generation.Sampling(
        params.sample.answers, params.sample.temperature, params.sample.top_p, params.sample.max_new_tokens,
        params.seed,
    )  # fmt: skip
    texts, tokenizer = [one["prompt"] for one in prompts], modeling.load_tokenizer(params.prompt)
    policy = modeling.policy_identity(params.chosen_model.weights, Path("models") / checkpoint)
    folder = cache("sample") / hashed(json.dumps([policy, vars(settings), texts]))[:16]
    stops = tokenizer.convert_tokens_to_ids(modeling.template_of(params.prompt).stops)
    return generation.sample(
        model, tokenizer, texts, stops, settings, f"sample: {checkpoint}", folder
    ), folder


def judged(judge, prompts: list[dict], answers: "list[list[Answer]]") -> list[dict]:
    """A row of ANSWERS, and the prompt's messages, for every answer. One that never stopped has no score: it
    would teach to go on.
    """
    from stages.judge.answered import Answered

    rows = [
        {"prompt_id": prompt["id"], "task": prompt["task"], "messages": prompt["messages"],
            "prompt": prompt["prompt"], "reference": prompt["reference"], "answer": answer.text,
            "tokens": len(answer.tokens), "stopped": answer.stopped, "score": None}
        for prompt, own in zip(prompts, answers)
        for answer in own
    ]  # fmt: skip
    whole = [row for row in rows if row["stopped"] and row["answer"].strip()]
    given = [
        Answered("\n\n".join(turn["content"] for turn in row["messages"]), row["answer"], [row["reference"]])
        for row in whole
    ]
    for row, score in zip(whole, judge.scores(given, "sample") if given else []):
        row["score"] = score
    return rows


# --- pairs --------------------------------------------------------------------------------------------------


def paired(rows: list[dict], margin: float, checkpoint: str) -> tuple[list[dict], Counter]:
    """The best answer of each prompt against its worst, as rows of the preferences layout, and why prompts
    gave none. Of equally good answers the first counts.
    """
    by_prompt, pairs, lost = defaultdict(list), [], Counter()
    for row in rows:
        by_prompt[row["prompt_id"]].append(row)
    for own in by_prompt.values():
        scored = [row for row in own if row["score"] is not None]
        if len(scored) < 2:
            lost["fewer than two answers with a verdict"] += 1
            continue
        best, worst = (pick(scored, key=lambda row: row["score"]) for pick in (max, min))
        if best["score"] - worst["score"] <= margin:
            lost["no answer is better than another"] += 1
            continue
        pairs.append(
            {"prompt": best["messages"], "chosen": turn(best["answer"]), "rejected": turn(worst["answer"]),
                "source": SAMPLED, "id": f"sampled-{checkpoint}:{len(pairs)}", "task": best["task"],
                "split": "train"}
        )  # fmt: skip
    return pairs, lost


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


def facts(params: Params, checkpoint: str, judge: dict, prompts: int, pairs: list[dict]) -> dict:
    """What the pairs are and who made them, as of every dataset."""
    from importlib.metadata import version

    from stages.model import modeling

    return {
        "checkpoint": f"models/{checkpoint}",
        "weights_sha256": modeling.weights_sha256(Path("models") / checkpoint),
        "engine": f"transformers {version('transformers')}",
        "judge": judge,
        "published": prompts,
        "taken": len(pairs),
        "note": f"The best and the worst of {params.sample.answers} answers of models/{checkpoint} itself.",
    }


if __name__ == "__main__":
    with one_line_errors():
        if sys.argv[1:] not in (["sft"], ["dpo"]):
            sys.exit("usage: python -m stages.sample sft|dpo")
        main(sys.argv[1])
