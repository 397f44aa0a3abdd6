"""Evaluate one checkpoint → metrics/<checkpoint>.json, the few numbers to watch;
metrics/tables/<checkpoint>.json, how it was asked and every score with its error;
data/predictions/<checkpoint>.parquet, every answer.

python -m stages.evaluate base | sft | dpo | refine-<method>
"""

import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import pyarrow as pa
from pyarrow import parquet

from stages.settings.errors import Problem, one_line, one_line_errors
from stages.settings.files import read_json, replace_file, write_json
from stages.settings.params import LOWER_IS_BETTER, Params
from stages.settings.stage import stage
from stages.text.prompts import Template

FORMATTED, REPORTS = Path("data/formatted"), Path("data/reports")
SOURCES = Path("data/raw/benchmarks/sources.json")
# What a checkpoint's training started from; the base model where nothing else is said.
PARENT = {"dpo": Path("models/sft")}
HEADLINE = ("preference", "validation_loss", "stop_rate")  # beside the benchmarks
# Ends of the names of benchmarks: how else the same items were asked.
DETAILS = ("_worked_examples", "_worked_examples_f1", "skills_choice")


def main(checkpoint: str) -> None:
    refined = checkpoint.startswith("refine-")
    with stage("evaluate_refined" if refined else "evaluate", checkpoint) as params:
        from stages.evaluation import benchmarks, candidate, heldout, scores, tables
        from stages.judge import judges
        from stages.model import device, generation, modeling

        laps = [("", perf_counter())]

        # 1. the checkpoint, and what its training started from
        device.require("evaluate")
        parent = Path("models/dpo") if refined else PARENT.get(checkpoint)
        judge = judges.open_judge("evaluate.judge", params.evaluate.judge)
        model = candidate.load(checkpoint, params, parent)
        print(f"evaluate: {checkpoint}: {device.described(model.model)}", flush=True)

        laps.append(("loading", perf_counter()))

        # 2. benchmarks, and held-out pairs as one more
        names, rows, texts = list(read_json(SOURCES)), [], held_out("instructions")
        for name in names:
            rows += benchmarks.ask(model, name, params.evaluate, texts, judge)
            laps.append((name, perf_counter()))
        pairs = spread(
            [row for row in held_out("preferences") if row["chosen"] and row["rejected"]],
            params.evaluate.held_out,
        )
        chosen, rejected = heldout.score_pairs(model, pairs)
        rewards = heldout.reward_scores(model, pairs, chosen, rejected) if parent else {}
        rows = list(map(benchmarks.complete, rows + heldout.preferences(pairs, chosen, rejected)))
        trained_on = ["instructions", "preferences", *(["continued"] if refined else [])]
        leaked = scores.leaked_items(REPORTS / f"{role}.parquet" for role in trained_on)
        for row in rows:
            row["leaked"] = (row.get("source"), row.get("item", row["id"])) in leaked

        laps.append(("held-out pairs", perf_counter()))

        # 3. held-out text, and the health of answers to some of its prompts
        texts = spread(texts, params.evaluate.held_out)
        losses, stops = heldout.score_texts(model, texts)
        laps.append(("held-out texts", perf_counter()))
        asked = [row for row in texts if row["prompt"]]  # raw text has none
        asked = spread(asked, params.evaluate.health_prompts)
        facts, answers = heldout.health(model, asked)
        cut = generation.cut(
            "evaluate.max_new_tokens",
            params.evaluate.max_new_tokens,
            [row["stopped"] for row in answers],
            [row["trained"] for row in asked],
        )
        laps.append(("health", perf_counter()))
        entries = scores.scores(rows)
        rows += map(benchmarks.complete, answers)
        measures = {
            **scores.overall(entries),
            **scores.place_bias(rows),
            **heldout.text_scores(losses, stops),
            **heldout.preference_scores(chosen, rejected),
            **rewards,
            **facts,
        }

        # 4. write
        with replace_file(Path(f"data/predictions/{checkpoint}.parquet")) as temporary:
            parquet.write_table(pa.Table.from_pylist(rows, benchmarks.SCHEMA), temporary)
        wording = {name: benchmarks.wording(name, params.evaluate, judge) for name in names}
        asked = [protocol(params, model.template, name, how) for name, how in wording.items()]
        called = modeling.called(checkpoint, Path("models") / checkpoint)
        tables.write(checkpoint, called, asked, rows, entries, measures, shares(facts))
        metrics = headline(measures, scores.overall(entries))
        write_json(Path(f"metrics/{checkpoint}.json"), metrics)
        gate(checkpoint, params, measures)
        shown = ", ".join(f"{name} {value:.3f}" for name, value in list(metrics.items())[:3])
        print(f"evaluate: {checkpoint}: {shown}")
        print(f"evaluate: {checkpoint}: {seconds(laps)}")
        if judge:
            print(f"evaluate: {checkpoint}: judge: {judge.report()}")
        notes = [*benchmarks.shot_notes(wording, params.evaluate), *benchmarks.notes(rows, judge), cut]
        for note in filter(None, notes):
            print(f"note: {one_line(note)}")


def seconds(laps: list[tuple[str, float]]) -> str:
    """What each part took, in words; each lap is named by the part that it ends."""
    parts = [f"{name} {end - start:.0f} s" for (_, start), (name, end) in pairwise(laps)]
    return ", ".join(parts)


def held_out(role: str) -> list[dict]:
    return parquet.read_table(FORMATTED / role / "validation.parquet").to_pylist()


def spread(rows: list[dict], count: int) -> list[dict]:
    """At most `count` rows, from every part of the list: datasets stand in it one after another."""
    return [rows[i * len(rows) // count] for i in range(count)] if len(rows) > count else rows


def protocol(params: Params, template: Template, name: str, wording: dict) -> dict:
    """How a benchmark was asked: what another number must share to be compared with these."""
    source, weights = read_json(SOURCES)[name], params.chosen_model.weights
    return {
        "benchmark": name,
        **{key: source[key] for key in ("builtin", "repo", "commit", "path") if key in source},
        "split": params.evaluate.split,
        **wording,
        "template": params.prompt.template,
        "template_sha256": template.sha256,
        "system": params.prompt.system,
        "max_new_tokens": wording.get("max_new_tokens", params.evaluate.max_new_tokens),
        "dtype": weights.dtype,
        "quantization": weights.quantization,
    }


def shares(facts: dict[str, float]) -> dict[str, float]:
    """Of the signs of health those from 0 to 1, which one axis can show."""
    return {
        name: value
        for name, value in facts.items()
        if name.endswith(("_rate", "_share")) or name in ("repetition", "distinct_2")
    }


def headline(measures: dict[str, float], benchmarks: Iterable[str]) -> dict[str, float]:
    """The few numbers to watch, so that `dvc metrics diff` stays short; the tables hold all of them."""
    shown = [*benchmarks, *HEADLINE]
    return {name: value for name, value in measures.items() if name in shown and not name.endswith(DETAILS)}


def gate(checkpoint: str, params: Params, metrics: dict[str, float]) -> None:
    """Raise Problem where a trained checkpoint misses what `evaluate.require` asks; the base model need not
    meet it.
    """
    for name, bound in params.evaluate.require.items() if checkpoint != "base" else ():
        if name not in metrics:
            raise Problem(
                f"evaluate.require.{name}: this evaluation measures no {name}; it has {', '.join(metrics)}"
            )
        worst = "most" if name in LOWER_IS_BETTER else "least"
        if (metrics[name] > bound) if worst == "most" else (metrics[name] < bound):
            raise Problem(
                f"{checkpoint} has a {name} of {metrics[name]} and evaluate.require.{name} asks for at "
                f"{worst} {bound}: "
                f"its answers stand in data/predictions/{checkpoint}.parquet"
            )


if __name__ == "__main__":
    with one_line_errors():
        if len(sys.argv) != 2:
            sys.exit("usage: python -m stages.evaluate base|sft|dpo|refine-<method>")
        main(sys.argv[1])
