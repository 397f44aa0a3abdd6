"""What a checkpoint answered, as JSON lines, to be read or given to a judge.

python -m tools.answers CHECKPOINT [BENCHMARK]        held-out prompts by default; cidar-eval, skills, …
python -m tools.answers CHECKPOINT --sampled          those of the stage sample, for people to score: each
                                                      answer once, its score null
"""

import argparse
import json
from pathlib import Path

from pyarrow import parquet

from stages.settings.errors import Problem, one_line_errors

COLUMNS = ["benchmark", "id", "subject", "question", "reference", "answer", "score", "stopped"]


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m tools.answers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="base, sft, dpo, …")
    parser.add_argument("benchmark", nargs="?", default="held-out")
    parser.add_argument("--sampled", action="store_true")
    asked = parser.parse_args()
    with one_line_errors():
        found = (
            sampled(Path(f"data/raw/sampled-{asked.checkpoint}/answers.parquet"))
            if asked.sampled
            else answers(Path(f"data/predictions/{asked.checkpoint}.parquet"), asked.benchmark)
        )
        for row in found:
            print(json.dumps(row, ensure_ascii=False))


def answers(path: Path, benchmark: str) -> list[dict]:
    """The rows of a benchmark in their order, choices as they are published."""
    if not path.exists():
        raise Problem(f"{path} does not exist: run `dvc repro`, or `dvc checkout` where it has run")
    rows = parquet.read_table(path, columns=COLUMNS, filters=[("rotation", "=", 0)]).to_pylist()
    found = [row for row in rows if row["benchmark"] == benchmark]
    if not found:
        raise Problem(
            f"{path} holds no {benchmark}: it has {', '.join(sorted({row['benchmark'] for row in rows}))}"
        )
    return found


def sampled(path: Path) -> list[dict]:
    """The answers that a judge would be given, as lines of data/feedback/verdicts.jsonl."""
    if not path.exists():
        raise Problem(f"{path} does not exist: set sample.prompts and run `dvc repro`")
    rows = parquet.read_table(path, columns=["question", "reference", "answer", "stopped"]).to_pylist()
    whole = {
        (row["question"], row["answer"]): row for row in rows if row.pop("stopped") and row["answer"].strip()
    }
    return [row | {"score": None} for row in whole.values()]


if __name__ == "__main__":
    with one_line_errors():
        main()
