"""Evaluate one checkpoint on held-out data → metrics/<checkpoint>.json and data/predictions/<checkpoint>.parquet.

python -m stages.evaluate base | sft | dpo | refine-<method>
"""

import sys
from collections import defaultdict
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from stages import arabic, benchmarks
from stages.benchmarks import average, proportion
from stages.files import replace_file, write_json
from stages.params import stage
from stages.prompts import TEMPLATES

FORMATTED = Path("data/formatted")


def main(checkpoint: str) -> None:
    with stage("evaluate_refined" if checkpoint.startswith("refine-") else "evaluate", checkpoint) as params:
        from stages import generation, modeling, scoring

        # 1. model and data
        tokenizer = modeling.load_tokenizer(params.prompt)
        folder = None if checkpoint == "base" else Path("models") / checkpoint
        model = modeling.load_checkpoint(params.chosen_model.weights, folder).eval()
        template, size = TEMPLATES[params.prompt.template], params.evaluate.batch_size
        items, examples = benchmarks.load(params.evaluate.split)

        # 2. answers: as chat, after worked examples, and as a choice
        def ask(prompts, stops, title):
            return generation.generate(model, tokenizer, prompts, stops, size, params.evaluate.max_new_tokens, title)

        def score(pairs, title):
            return scoring.score(model, tokenizer, pairs, title)

        chats = [template.render([{"role": "user", "content": item["question"]}], params.prompt.system) for item in items]
        answers = ask(chats, [tokenizer.eos_token_id], f"{checkpoint}: answers")
        line_ends = [token for token in range(len(tokenizer)) if "\n" in tokenizer.decode([token])]
        shots = [benchmarks.few_shot(item, examples) for item in items]
        few_shot = ask(shots, [*line_ends, tokenizer.pad_token_id, tokenizer.eos_token_id], f"{checkpoint}: worked examples")
        options = [(chat, template.complete(choice)) for chat, item in zip(chats, items) for choice in item["choices"]]
        picks = pick(items, score(options, f"{checkpoint}: choices"))

        # 3. held-out text and pairs
        texts = parquet.read_table(FORMATTED / "instructions/validation.parquet").to_pylist()
        losses = score([(row["prompt"], row["completion"]) for row in texts], f"{checkpoint}: validation")
        pairs = parquet.read_table(FORMATTED / "preferences/validation.parquet").to_pylist()
        chosen = score([(row["prompt"], row["chosen"]) for row in pairs], f"{checkpoint}: chosen")
        rejected = score([(row["prompt"], row["rejected"]) for row in pairs], f"{checkpoint}: rejected")

        # 4. write
        rows = predictions(items, answers, few_shot, picks)
        with replace_file(Path(f"data/predictions/{checkpoint}.parquet")) as temporary:
            parquet.write_table(pa.Table.from_pylist(rows), temporary)
        metrics = {
            **skill_scores(rows),
            "validation_loss": round(-sum(s.logp for s in losses) / sum(s.tokens for s in losses), 4),
            "preference": preference_scores(pairs, chosen, rejected),
            "health": health(answers),
            "families": family_scores(rows),
        }
        write_json(Path(f"metrics/{checkpoint}.json"), metrics)
        match = metrics["exact_match"]
        print(f"evaluate: {checkpoint}: exact match {match['value']:.3f} ± {match['stderr']:.3f} on {match['n']} questions")


def pick(items: list[dict], scores: list) -> list[int]:
    """The most probable choice of each item; `scores` holds every item's choices in a row."""
    picks, start = [], 0
    for item in items:
        own = [score.logp for score in scores[start : start + len(item["choices"])]]
        picks.append(own.index(max(own)))
        start += len(own)
    return picks


def predictions(items: list[dict], answers: list, few_shot: list, picks: list[int]) -> list[dict]:
    """One row per item: what was asked, what came, and whether it was right."""
    return [
        {
            "id": item["id"],
            "subject": item["subject"],
            "question": item["question"],
            "reference": benchmarks.right(item),
            "answer": answer.text,
            "right": benchmarks.is_right(item, answer.text),
            "sentence": benchmarks.is_sentence(answer.text),
            "stopped": answer.stopped,
            "few_shot_answer": shot.text,
            "few_shot_right": benchmarks.is_right(item, shot.text),
            "picked": item["choices"][picked],
            "picked_right": picked == item["answer"],
            "choices": len(item["choices"]),
        }
        for item, answer, shot, picked in zip(items, answers, few_shot, picks)
    ]


def skill_scores(rows: list[dict]) -> dict:
    """Content and form of the answers, shown together: each can be bought with the other."""
    return {
        "exact_match": proportion([row["right"] for row in rows]) | {"chance": average(benchmarks.chance(row["subject"]) for row in rows)},
        "sentence_rate": proportion([row["sentence"] for row in rows]),
        "right_sentence": proportion([row["right"] and row["sentence"] for row in rows]),
        "few_shot_exact_match": proportion([row["few_shot_right"] for row in rows]),
        "multiple_choice": proportion([row["picked_right"] for row in rows]) | {"chance": average(1 / row["choices"] for row in rows)},
    }


def family_scores(rows: list[dict]) -> dict:
    families = defaultdict(list)
    for row in rows:
        families[row["subject"]].append(row)
    return {
        name: proportion([row["right"] for row in own]) | {"chance": round(benchmarks.chance(name), 4)} for name, own in families.items()
    }


def preference_scores(pairs: list[dict], chosen: list, rejected: list) -> dict:
    """How often the chosen answer is more probable, beside a judge that only likes long answers; margins in nats."""
    wins = [c.logp > r.logp for c, r in zip(chosen, rejected)]
    by_source = defaultdict(list)
    for pair, win in zip(pairs, wins):
        by_source[pair["source"]].append(win)
    return {
        "accuracy": proportion(wins),
        "accuracy_per_token": average(c.per_token > r.per_token for c, r in zip(chosen, rejected)),
        "margin": average(c.logp - r.logp for c, r in zip(chosen, rejected)),
        "longer_wins": average(c.tokens > r.tokens for c, r in zip(chosen, rejected)),
        "by_source": {source: average(own) for source, own in sorted(by_source.items())},
    }


def health(answers: list) -> dict:
    """Signs of a broken model: answers that do not stop, are not Arabic, or repeat themselves."""
    return {
        "stop_rate": average(answer.stopped for answer in answers),
        "arabic_share": average(arabic.arabic_share(answer.text) for answer in answers),
        "repetition": average(answer.repetition for answer in answers),
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m stages.evaluate base|sft|dpo|refine-<method>")
    main(sys.argv[1])
