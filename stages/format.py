"""Raw rows → Arabic prompts: data/raw/<role> → data/formatted/<role>/{train,validation}.parquet and report.json.

    python -m stages.format instructions | preferences

Every row that comes in is kept or counted as dropped with a reason; nothing is truncated.
"""

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet
from tokenizers import Tokenizer

from stages import arabic, hub
from stages.files import replace_folder, write_json
from stages.params import Params, Problem, stage
from stages.prompts import SPECIAL, TEMPLATES

ANSWERS = {"instructions": ("completion",), "preferences": ("chosen", "rejected")}


def main(role: str) -> None:
    with stage("format", role) as params:
        tokenizer = Tokenizer.from_file(str(hub.base_folder() / "tokenizer.json"))
        checked = list(check(role, formatted(role, params), tokenizer, params.prompt.max_length))
        kept = [row for row, reason in checked if not reason]
        splits = {name: [row for row in kept if row["split"] == name] for name in ("train", "validation")}
        for name, rows in splits.items():
            if not rows:
                raise Problem(f"no {name} rows are left in data/raw/{role}: see data.{role} and prompt.max_length")
        with replace_folder(Path("data/formatted") / role) as folder:
            for name, rows in splits.items():
                parquet.write_table(pa.Table.from_pylist(rows).drop_columns(["split"]), folder / f"{name}.parquet")
            write_json(folder / "report.json", report(checked, splits))
        counts = ", ".join(f"{len(rows):,} {name}" for name, rows in splits.items())
        print(f"format: {role}: {counts}, {len(checked) - len(kept):,} dropped")


def formatted(role: str, params: Params) -> Iterator[dict]:
    """Rows with normalised text, rendered by the template."""
    template, held_out = TEMPLATES[params.prompt.template], params.format.validation
    normalise = partial(arabic.normalise, tashkeel=params.text.tashkeel, digits=params.text.digits)
    for row in raw_rows(role):
        turns = [{"role": turn["role"], "content": normalise(turn["content"])} for turn in row["prompt"]]
        answers = {name: normalise(row[name][-1]["content"]) for name in ANSWERS[role]}
        yield {
            "prompt": template.render(turns, params.prompt.system),
            **{name: template.complete(answer) for name, answer in answers.items()},
            "source": row["source"],
            "id": row["id"],
            "split": row["split"] or split_of(turns, held_out),
            "contents": [*(turn["content"] for turn in turns), *answers.values()],
        }


def raw_rows(role: str) -> Iterator[dict]:
    for path in sorted((Path("data/raw") / role).glob("*.parquet")):
        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()


def split_of(turns: list[dict], validation: float) -> str:
    """By a hash of the prompt, so that no prompt stands on both sides."""
    text = "\0".join(turn["content"] for turn in turns)
    share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32
    return "validation" if share < validation else "train"


def check(role: str, rows: Iterator[dict], tokenizer: Tokenizer, max_length: int) -> Iterator[tuple[dict, str]]:
    """Each row with the reason to drop it ("" to keep it), and its length in tokens: prompt and longest answer."""
    seen = set()
    for row in rows:
        contents = row.pop("contents")
        answers = [row[name] for name in ANSWERS[role]]
        row["tokens"] = max(len(tokenizer.encode(row["prompt"] + answer).ids) for answer in answers)
        key = (row["prompt"], *answers)
        if not all(contents):
            reason = "empty"
        elif any(token in content for content in contents for token in SPECIAL):
            reason = "special_token"  # it would end the turn, or open another
        elif row["tokens"] > max_length:
            reason = "too_long"  # the stop token, or the whole answer, would be cut
        elif len(answers) == 2 and answers[0] == answers[1]:
            reason = "chosen_is_rejected"
        elif key in seen:
            reason = "duplicate"
        else:
            reason = ""
        seen.add(key)
        yield row, reason


def report(checked: list[tuple[dict, str]], splits: dict[str, list[dict]]) -> dict:
    """Where every row went, and token statistics of the training rows."""
    tokens = np.array([row["tokens"] for row in splits["train"]])
    return {
        "rows": len(checked),
        "train": len(splits["train"]),
        "validation": len(splits["validation"]),
        "dropped": dict(sorted(Counter(reason for _, reason in checked if reason).items())),
        "tokens": {
            "total": int(tokens.sum()),
            "mean": round(float(tokens.mean()), 1),
            "p50": int(np.percentile(tokens, 50)),
            "p95": int(np.percentile(tokens, 95)),
            "max": int(tokens.max()),
        },
    }


if __name__ == "__main__":
    if sys.argv[1:] not in [[role] for role in ANSWERS]:
        sys.exit(f"usage: python -m stages.format {'|'.join(ANSWERS)}")
    main(sys.argv[1])
