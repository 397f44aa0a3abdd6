"""Task files for lm-evaluation-harness, so that the harness itself can score our benchmarks.

    python -m tools.harness FOLDER [--benchmark NAME …] [--style oall] [--shots 5] [--check sft]

For each benchmark in data/raw/benchmarks two files: a table of the items as protocols.py asks them, worked
examples and all, and the task that reads it. Items with a fault, and items found in training rows that were
kept, are left out. The command to run is printed; it needs lm-eval (pip install lm-eval==0.4.13). --check
runs a checkpoint through the harness here and compares its answers item by item with
data/predictions/<checkpoint>.parquet.

The harness tokenises prompt and option as one text, lighteval each for itself: in style oall scores can
differ where a tokenizer has a token that spans the two. And do not give it an adapter as `peft=`: it cuts the
embeddings of a model that has more of them than its tokenizer has tokens, as Qwen's have. --check hands it
the model as we load it.
"""

import argparse
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet
from ruamel.yaml import YAML

from stages.evaluation import protocols
from stages.evaluation.scores import leaked_items
from stages.settings import manifest
from stages.settings.errors import Problem, one_line_errors
from stages.settings.files import read_json, replace_file
from stages.settings.params import ROLES
from stages.settings.reader import read
from stages.sources.layouts import Row

RAW, REPORTS, PREDICTIONS = Path("data/raw/benchmarks"), Path("data/reports"), Path("data/predictions")
TRAINED_ON = [role for role, layout in ROLES.items() if layout != "benchmarks"]


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m tools.harness", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--benchmark", nargs="+", help="all that are multiple choice by default")
    parser.add_argument(
        "--style", choices=protocols.HARNESSES, help="params.yaml's evaluate.style by default"
    )
    parser.add_argument("--shots", type=int, help="worked examples; evaluate.shots by default")
    parser.add_argument("--check", metavar="CHECKPOINT", help="base, sft, dpo, …")
    asked = parser.parse_args()
    with one_line_errors():
        settings = read().evaluate
        asked.style, asked.shots = (
            asked.style or settings.style,
            settings.shots if asked.shots is None else asked.shots,
        )
        tasks = {
            task_name(name, asked): export(asked.folder, name, asked)
            for name in asked.benchmark or benchmarks()
        }
        print(command(asked.folder, list(tasks)))
        if asked.check:
            check(asked.folder, asked.check, tasks)


def task_name(benchmark: str, asked: argparse.Namespace) -> str:
    return f"{benchmark}-{asked.style}-{asked.shots}shot"


def benchmarks() -> list[str]:
    """Those of data/raw/benchmarks that are multiple choice. The built-in one is asked in ways of its own."""
    sources = read_json(RAW / "sources.json")
    found = [
        name
        for name, source in sources.items()
        if "builtin" not in source and any(row["choices"] for row in rows_of(name))
    ]
    if not found:
        raise Problem(
            f"the mixture's benchmarks are {', '.join(sources) or 'none'}: none is a published "
            "multiple-choice benchmark; add one, arabicmmlu say"
        )
    return found


def rows_of(benchmark: str) -> list[Row]:
    path = RAW / f"{benchmark}.parquet"
    if not path.exists():
        raise Problem(
            f"{path} does not exist: add {benchmark} to the mixture's benchmarks and run "
            "`dvc repro fetch@benchmarks`"
        )
    return parquet.read_table(path).to_pylist()


# --- task files ---------------------------------------------------------------------------------------------


def export(folder: Path, benchmark: str, asked: argparse.Namespace) -> pa.Table:
    """Write a benchmark's table and task; return the table."""
    task, how = task_name(benchmark, asked), protocols.protocol(benchmark, asked.style)
    table = pa.Table.from_pylist(list(questions(benchmark, asked.style, asked.shots)))
    with replace_file(folder / f"{task}.parquet") as temporary:
        parquet.write_table(table, temporary)
    with replace_file(folder / f"{task}.yaml") as temporary:
        YAML().dump(definition(task, how.delimiter), temporary)
    asks = (
        f"as {how.task} of {protocols.HARNESSES[asked.style]}"
        if how.task
        else f"in the general wording of {asked.style}"
    )
    print(f"{folder / task}.yaml: {len(table):,} items, asked {asks}")
    return table


def questions(benchmark: str, style: str, shots: int) -> Iterator[Row]:
    """The items that count, each rendered. `normalise` tells which of the harness's two scores is ours."""
    rows = rows_of(benchmark)
    leaked = leaked_items(path for role in TRAINED_ON if (path := REPORTS / f"{role}.parquet").exists())
    examples = protocols.examples_for(benchmark, style, rows, shots)
    for row in rows:
        if (
            row["split"] == "test"
            and row["fault"] is None
            and row["answer"] is not None
            and (benchmark, row["id"]) not in leaked
        ):
            request = protocols.ask(benchmark, row, style, examples(row))
            yield {
                "benchmark": benchmark, "id": row["id"], "subject": row["subject"], "query": request.prompt,
                "choices": request.answers,
                "gold": row["answer"], "normalise": request.normalise,
            }  # fmt: skip


def definition(task: str, delimiter: str) -> dict:
    """The harness's task file. What is no template but the name of a column is taken from it as it is."""
    return {
        "task": task,
        "dataset_path": "parquet",
        "dataset_kwargs": {
            "data_files": {"test": f"{task}.parquet"}
        },  # beside this file, where the command is run
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "query",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": delimiter,
        "num_fewshot": 0,  # the worked examples are part of the query
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in ("acc", "acc_norm")
        ],
        "metadata": {"version": 1.0},
    }


def command(folder: Path, tasks: list[str]) -> str:
    weights, base = (
        read().chosen_model.weights,
        read_json(manifest.MANIFEST) if manifest.MANIFEST.exists() else {},
    )
    model = (
        f"{base['repo']},revision={base['commit']}"
        if "repo" in base
        else Path(base.get("path", "MODEL")).absolute()
    )
    nf4 = (
        ",load_in_4bit=True,bnb_4bit_quant_type=nf4,bnb_4bit_use_double_quant=True"
        if weights.quantization == "nf4"
        else ""
    )
    return (
        f"cd {folder} && lm_eval --model hf --model_args pretrained={model},dtype={weights.dtype}{nf4} \\\n"
        f"    --include_path . --tasks {','.join(tasks)} --batch_size 8"
    )


# --- check --------------------------------------------------------------------------------------------------


def check(folder: Path, checkpoint: str, tasks: dict[str, pa.Table]) -> None:
    """Score a checkpoint in the harness and print, per task, its scores and on how many items it answers as
    our predictions do.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from stages.model import modeling

    params = read()
    model = modeling.load_checkpoint(
        params.chosen_model.weights, None if checkpoint == "base" else Path("models") / checkpoint
    )
    harness = HFLM(model, tokenizer=modeling.load_tokenizer(params.prompt), backend="causal", batch_size=8)
    with chdir(folder):
        manager = TaskManager(include_path=".", include_defaults=False)
        found = simple_evaluate(
            harness, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, log_samples=True
        )
    for task, table in tasks.items():
        scores = ", ".join(
            f"{metric} {found['results'][task][f'{metric},none']:.4f}" for metric in ("acc", "acc_norm")
        )
        picks = {sample["doc"]["id"]: picked(sample) for sample in found["samples"][task]}
        print(
            f"{task}: {scores} of {len(table):,} "
            f"items{agreement(checkpoint, table['benchmark'][0].as_py(), picks)}"
        )


def picked(sample: dict) -> int:
    """The option that the harness's main score picks in a sample of its log."""
    logps = np.array([logp for logp, _ in sample["filtered_resps"]])
    by_characters = sample["doc"]["normalise"] == "characters"
    return int(
        np.argmax(logps / [len(choice) for choice in sample["doc"]["choices"]] if by_characters else logps)
    )


def agreement(checkpoint: str, benchmark: str, picks: dict[str, int]) -> str:
    path = PREDICTIONS / f"{checkpoint}.parquet"
    filters = [("benchmark", "=", benchmark), ("rotation", "=", 0)]
    ours = (
        parquet.read_table(path, columns=["id", "picked"], filters=filters).to_pylist()
        if path.exists()
        else []
    )
    compared = [picks[row["id"]] == row["picked"] for row in ours if row["id"] in picks]
    return (
        f"; the same answer as in {path} on {sum(compared):,} of {len(compared):,}"
        if compared
        else f"; {path} does not tell ours"
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
