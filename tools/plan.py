"""What training needs on the GPU, predicted for every model, stage and length, and what fits; or how long the
stages take on a card, with the rows that `format` has written.

python -m tools.plan [--length 512 1024 2048] [--vram 12] [--model qwen2_5-7b] [--stage sft] [--weights nf4]
    [--markdown | --parts]
python -m tools.plan --card "RTX 3060" [--model qwen2_5-7b] [--markdown]
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace

from stages.settings import memory
from stages.settings.errors import one_line_errors
from stages.settings.files import read_json
from stages.settings.manifest import MANIFEST
from stages.settings.memory import GB, Run
from stages.settings.params import Params
from stages.settings.reader import read
from tools import duration

STAGES = {"sft": None, "dpo": "dpo", "kto": "kto"}  # and the method of each
HEADER = [
    "model",
    "weights",
    "stage",
    "tokens",
    "smallest batch",
    "configured batch",
    "fits",
    "nearest setting that fits",
]


def main() -> None:
    with one_line_errors():
        params = read()
    parser = argparse.ArgumentParser(
        "python -m tools.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--length", type=int, nargs="+", default=[512, 1024, 2048], help="tokens of a sequence"
    )
    parser.add_argument("--vram", type=float, default=params.hardware.vram_gb, help="GB of the GPU")
    parser.add_argument("--model", nargs="+", choices=list(params.models), default=list(params.models))
    parser.add_argument("--stage", nargs="+", choices=[*STAGES, "inference"], default=[*STAGES, "inference"])
    parser.add_argument(
        "--weights", nargs="+", choices=["none", "nf4"], help="how they are quantised; as configured"
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--markdown", action="store_true", help="the table in Markdown")
    shown.add_argument(
        "--parts",
        action="store_true",
        help="the parts of each sum, at the smallest batch and the configured weights",
    )
    parser.add_argument("--card", choices=list(duration.CARDS), help="times on it instead of memory")
    asked = parser.parse_args()
    if asked.card and asked.model == list(params.models):
        asked.model = [params.model]
    for name in list(asked.model):
        if why := memory.unplanned(params.models[name].weights):
            print(f"{name}: {why}")
            asked.model.remove(name)
    if asked.card:
        print_times(params, asked)
        return
    for table in parts(params, asked) if asked.parts else [[HEADER, *rows(params, asked)]]:
        print((markdown if asked.markdown else aligned)(table), end="\n\n" if asked.parts else "\n")


def print_times(params: Params, asked: argparse.Namespace) -> None:
    card, (fast, slow), (fast4, slow4) = duration.CARDS[asked.card], duration.SHARE, duration.SHARE_NF4
    with one_line_errors():
        found = list(duration.table(params, asked.model, asked.card))
        print(
            f"Computed, not measured, from the rows that were formatted for {read_json(MANIFEST)['model']}.\n"
            f"{asked.card}: {card.tflops:g} TFLOPS in bfloat16, {card.bandwidth:g} GB/s ({card.source});\n"
            f"{slow:.0%} to {fast:.0%} are taken to be used; with 4-bit weights {slow4:.0%} to {fast4:.0%}.\n"
        )
    print((markdown if asked.markdown else aligned)(found))


def rows(params: Params, asked: argparse.Namespace) -> Iterator[list[str]]:
    """One row per model, kind of weights, stage and length: GB at the smallest batch and at the configured
    one.
    """
    for name in asked.model:
        for quantization in asked.weights or [params.models[name].weights.quantization]:
            for stage in asked.stage:
                for length in asked.length:
                    row = [
                        name,
                        quantization.replace("none", params.models[name].weights.dtype),
                        stage,
                        f"{length:,}",
                    ]
                    if stage == "inference":
                        needed = sum(generation(params, name, quantization, length).values()) / GB
                        yield [*row, f"1: {needed:.1f}", "", "yes" if needed <= asked.vram else "no", ""]
                    elif run := planned(params, name, stage, quantization, length):
                        yield [*row, *verdict(run, asked.vram)]


def planned(params: Params, name: str, stage: str, quantization: str, length: int) -> Run | None:
    """The configured run with other weights and another length; None for 4-bit weights without LoRA."""
    run = memory.run_of(params, name, stage, STAGES[stage])
    if quantization == "nf4" and not run.lora:
        return None
    return replace(
        run, quantization=quantization, length=length, batch_size=max(run.batch_size, run.least_batch)
    )


def generation(params: Params, name: str, quantization: str, length: int) -> dict[str, float]:
    weights = params.models[name].weights
    return memory.inference(memory.shape_of(weights), quantization, weights.dtype, length)


def verdict(run: Run, vram: float) -> list[str]:
    cured = memory.cure(run, vram)
    setting = ", ".join(text for *_, text in memory.changes(run, cured)) if cured else "a smaller model"
    return [
        f"{run.least_batch}: {memory.predicted(replace(run, batch_size=run.least_batch)):.1f}",
        f"{run.batch_size}: {memory.predicted(run):.1f}",
        "yes" if memory.predicted(run) <= vram else "no",
        "" if memory.predicted(run) <= vram else setting,
    ]


def parts(params: Params, asked: argparse.Namespace) -> Iterator[list[list[str]]]:
    """One table per model and stage: a row per part, a column per length, GB."""
    for name in asked.model:
        quantization = params.models[name].weights.quantization
        for stage in asked.stage:
            if stage == "inference":
                columns = [generation(params, name, quantization, length) for length in asked.length]
            else:
                found = [planned(params, name, stage, quantization, length) for length in asked.length]
                columns = [memory.parts(replace(run, batch_size=run.least_batch)) for run in found]
            names = dict.fromkeys(part for column in columns for part in column)
            table = [[part, *(f"{column.get(part, 0) / GB:.2f}" for column in columns)] for part in names]
            total = ["sum", *(f"{sum(column.values()) / GB:.2f}" for column in columns)]
            yield [[f"{name}, {stage}", *(f"{length:,}" for length in asked.length)], *table, total]


def aligned(table: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table
    )


def markdown(table: list[list[str]]) -> str:
    header, *body = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([header, "|---" * len(table[0]) + "|", *body])


if __name__ == "__main__":
    with one_line_errors():
        main()
