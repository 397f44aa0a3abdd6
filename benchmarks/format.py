"""Formatting at real size: our stage, and the usual ways to do its parts, side by side on the same generated
rows.

    python -m benchmarks.format [--rows 500000] [--alternatives-rows 50000] [--tokenizer tokenizer.json]

Rows are Arabic-like words with the frequencies of a language (Zipf), about 600 bytes each, with known exact
duplicates, near duplicates (one word in twenty changed) and leaked benchmark questions among them, so that
what is found can be counted. The stage runs whole, as `dvc repro` runs it, in a temporary folder; memory is
the sum over all its processes, sampled.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from stages import fetch
from stages.gate import duplicates
from stages.settings.errors import one_line_errors
from stages.settings.files import sha256
from stages.settings.stage import quiet
from stages.sources import layouts
from stages.text import arabic, shingles

ROOT = Path(__file__).parents[1]
LETTERS = "ابتثجحخدذرزسشصضطظعغفقكلمنهوي"
REPEATED, NEARLY, LEAKED = 0.03, 0.03, 0.001  # shares of the rows
TOKENISED = 50_000  # rows that TRL is given
QUESTIONS = 14_000  # of the benchmark, as many as Arabic MMLU has


class Language:
    """Random texts over a fixed vocabulary with Zipf's frequencies."""

    def __init__(self, seed: int, words: int = 60_000):
        self.rng = np.random.default_rng(seed)
        lengths = self.rng.integers(2, 8, words)
        letters = self.rng.choice(list(LETTERS), lengths.sum())
        self.words = np.array(["".join(part) for part in np.split(letters, np.cumsum(lengths)[:-1])])
        frequencies = 1 / np.arange(3, words + 3)
        self.cumulative = np.cumsum(frequencies / frequencies.sum())

    def texts(self, count: int, mean: float, shortest: int) -> list[list[str]]:
        lengths = np.clip(self.rng.lognormal(np.log(mean), 0.5, count), shortest, 6 * mean).astype(int)
        ids = np.minimum(
            np.searchsorted(self.cumulative, self.rng.random(lengths.sum())), len(self.words) - 1
        )
        return [part.tolist() for part in np.split(self.words[ids], np.cumsum(lengths)[:-1])]


def generate(folder: Path, rows: int) -> dict[str, int]:
    """data/raw with `rows` instructions and a benchmark; returns how many rows of each kind were put in."""
    language = Language(seed=1)
    questions = language.texts(QUESTIONS, 16, 6)
    write_benchmark(folder, questions)
    (folder / "data/raw/instructions").mkdir(parents=True)
    kinds, done, kept = {"repeated": 0, "nearly": 0, "leaked": 0}, 0, []
    with parquet.ParquetWriter(
        folder / "data/raw/instructions/generated.parquet", layouts.SCHEMAS["instructions"]
    ) as writer:
        while done < rows:
            count = min(fetch.GROUP, rows - done)
            pairs = list(zip(language.texts(count, 16, 5), language.texts(count, 36, 5)))
            for i, chance in enumerate(language.rng.random(count)):
                old = kept[int(language.rng.integers(len(kept)))] if kept else None
                if chance < REPEATED and old:
                    pairs[i], kinds["repeated"] = old, kinds["repeated"] + 1
                elif chance < REPEATED + NEARLY and old and len(old[1]) > 25:
                    pairs[i], kinds["nearly"] = (old[0], changed(old[1], language)), kinds["nearly"] + 1
                elif chance > 1 - LEAKED:
                    pairs[i], kinds["leaked"] = (
                        (questions[int(language.rng.integers(QUESTIONS))], pairs[i][1]),
                        kinds["leaked"] + 1,
                    )
                elif len(kept) < 20_000:
                    kept.append(pairs[i])
            writer.write_table(
                pa.Table.from_pylist(
                    [row(done + i, *pair) for i, pair in enumerate(pairs)], layouts.SCHEMAS["instructions"]
                )
            )
            done += count
    (folder / "data/raw/instructions/sources.json").write_text(
        json.dumps({"generated": {"published": rows, "taken": rows}})
    )
    return kinds


def changed(words: list[str], language: Language) -> list[str]:
    """A near duplicate: one word in thirty is another."""
    words = list(words)
    for place in language.rng.integers(len(words), size=max(1, len(words) // 30)):
        words[place] = str(language.rng.choice(language.words))
    return words


def row(number: int, question: list[str], answer: list[str]) -> dict:
    asked, answered = " ".join(question) + "؟", " ".join(answer) + "."
    return layouts.instruction(asked, answered) | {"source": "generated", "id": f"generated:{number}"}


def write_benchmark(folder: Path, questions: list[list[str]]) -> None:
    (folder / "data/raw/benchmarks").mkdir(parents=True)
    rows = [
        layouts.question(" ".join(words) + "؟", ["أ", "ب"], 0, "generated")
        | {"id": str(i), "source": "exam", "split": "test"}
        for i, words in enumerate(questions)
    ]
    parquet.write_table(
        pa.Table.from_pylist(rows, layouts.SCHEMAS["benchmarks"]), folder / "data/raw/benchmarks/exam.parquet"
    )


# --- measuring ----------------------------------------------------------------------------------------------


def tree_memory(pid: int) -> int:
    """Bytes of memory that a process and its children hold, shared pages counted once each process (an upper
    bound).
    """
    total, pids = 0, [pid]
    while pids:
        one = pids.pop()
        try:
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * resource.getpagesize()
            for task in Path(f"/proc/{one}/task").iterdir():
                pids += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return total


def measured(command: list[str], folder: Path) -> tuple[float, float]:
    """Seconds and peak GB of a command."""
    start, peak, running = time.perf_counter(), 0, True
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)

    def watch() -> None:
        nonlocal peak
        while running:
            peak = max(peak, tree_memory(process.pid))
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    process.wait()
    running = False
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - start, peak / 1e9


def timed(action: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    result = action()
    return time.perf_counter() - start, result


def stage_whole(rows: int, tokenizer: Path) -> None:
    """Our stage on `rows` rows: time, memory, and what it found of what was put in."""
    with tempfile.TemporaryDirectory(dir=ROOT / ".cache") as name:
        folder = Path(name)
        for part in ("stages", "params.yaml", "dvc.yaml"):
            (folder / part).symlink_to(ROOT / part)
        model = folder / "models/base"
        model.mkdir(parents=True)
        shutil.copy(tokenizer, model / "tokenizer.json")
        manifest = {
            "model": "benchmark",
            "path": "models/base",
            "files": {"tokenizer.json": {"size": tokenizer.stat().st_size, "sha256": sha256(tokenizer)}},
        }
        (folder / "models/base.json").write_text(json.dumps(manifest))
        kinds = generate(folder, rows)
        size = sum(len(text.encode()) for text in sample_texts(folder, 2000)) / 2000
        seconds, memory = measured([sys.executable, "-m", "stages.format", "instructions"], folder)
        report = json.loads((folder / "data/reports/instructions.json").read_text())
        tokens(folder / "data/formatted/instructions/train.parquet", tokenizer)
    lost = report["dropped"]
    print(
        f"stage, whole    {rows:>9,} rows of {size:.0f} bytes  {seconds:7.1f} s  {rows / seconds:9,.0f} "
        f"rows/s  {memory:.2f} GB"
    )
    print(f"                put in: {kinds}")
    print(
        f"                dropped: {lost}; rows add up: "
        f"{report['rows'] == report['train'] + report['validation'] + sum(lost.values())}"
    )


def tokens(path: Path, tokenizer: Path) -> None:
    """The ids that the stage leaves with the rows, beside TRL's way: every training tokenises again."""
    from stages.training import supervised  # after main has silenced the progress bars of datasets

    columns = parquet.ParquetFile(path).metadata.row_group(0)
    sizes = {}
    for i in range(columns.num_columns):
        name = columns.column(i).path_in_schema.split(".")[0]
        sizes[name] = sizes.get(name, 0) + columns.column(i).total_compressed_size
    share = sum(sizes[name] for name in ("input_ids", "trained")) / sum(sizes.values())
    stored, rows = timed(lambda: supervised.labelled(path))
    size = f"{share:.0%} of {path.stat().st_size / 1e6:.0f} MB"
    print(f"tokens, ours    {len(rows):>9,} rows read  {stored:7.1f} s  {size}")
    rows = min(TOKENISED, len(rows))
    print(
        f"tokens, TRL's   {rows:>9,} rows made  {timed(lambda: trl_tokens(path, rows, tokenizer))[0]:7.1f} s"
    )


def trl_tokens(path: Path, rows: int, tokenizer: Path) -> object:
    """What SFTTrainer does with prompts and completions before its first step."""
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
    from trl import SFTConfig, SFTTrainer

    texts = parquet.read_table(path, columns=["prompt", "completion"]).slice(0, rows).to_pydict()
    words = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer), eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(words), num_key_value_heads=1, head_dim=8, **shape))
    with tempfile.TemporaryDirectory() as out:
        config = SFTConfig(out, use_cpu=True, bf16=False, report_to="none")
        return SFTTrainer(model, config, train_dataset=Dataset.from_dict(texts), processing_class=words)


def sample_texts(folder: Path, count: int) -> list[str]:
    rows = (
        parquet.ParquetFile(folder / "data/raw/instructions/generated.parquet")
        .read_row_group(0)
        .slice(0, count)
        .to_pylist()
    )
    return [f"{one['prompt'][0]['content']} {one['completion'][0]['content']}" for one in rows]


# --- ours and the alternative, part by part -----------------------------------------------------------------


def parts(rows: int) -> None:
    """Near-duplicate search and row mapping against what people usually reach for, on one core each."""
    language = Language(seed=2)
    texts = [" ".join(words) for words in language.texts(rows, 52, 10)]
    old = language.rng.choice(rows // 2, rows // 20, replace=False)
    new = rows // 2 + language.rng.choice(rows // 2, rows // 20, replace=False)
    for source, target in zip(old, new):
        texts[target] = " ".join(changed(texts[source].split(), language))
    for name, action in (
        ("ours: rensa signatures, numpy bands", ours_near),
        ("datasketch MinHashLSH", datasketch_near),
    ):
        seconds, found = timed(lambda action=action: action(texts))
        if found is None:
            print(f"near duplicates {name:<40} not installed")
            continue
        share = len(found & set(new.tolist())) / len(new)
        print(
            f"near duplicates {name:<40} {rows:,} rows  {seconds:6.1f} s  found {share:.3f} of {len(new):,}"
        )
    for name, action in (
        ("ours: batches of lists", ours_map),
        ("datasets.map, batched", datasets_map),
        ("datasets.map, by row", datasets_rows),
    ):
        print(
            f"normalise       {name:<40} {rows:,} rows  "
            f"{timed(lambda action=action: action(texts))[0]:6.1f} s"
        )


def ours_near(texts: list[str]) -> set[int]:
    hashes, owners = shingles.hash_words([arabic.words(text) for text in texts])
    signature = duplicates.signatures(hashes, owners, len(texts))
    keys = duplicates.band_keys(signature, duplicates.band_rows(0.8))
    return set(
        np.flatnonzero(duplicates.near_twins(keys, signature, np.ones(len(texts), bool), 0.8) >= 0).tolist()
    )


def datasketch_near(texts: list[str]) -> set[int] | None:
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError:
        return None
    index, found = MinHashLSH(threshold=0.8, num_perm=128), set()
    for number, text in enumerate(texts):
        words = arabic.words(text)
        sketch = MinHash(num_perm=128)
        sketch.update_batch([f"{a} {b}".encode() for a, b in pairwise(words)])
        if index.query(sketch):
            found.add(number)
        index.insert(number, sketch)
    return found


def ours_map(texts: list[str]) -> object:
    table = pa.table({"text": texts})
    return pa.table(
        {
            "text": [
                arabic.normalise(text)
                for batch in table.to_batches(10_000)
                for text in batch["text"].to_pylist()
            ]
        }
    )


def datasets_map(texts: list[str]) -> object:
    from datasets import Dataset

    return Dataset.from_dict({"text": texts}).map(
        lambda rows: {"text": [arabic.normalise(text) for text in rows["text"]]}, batched=True
    )


def datasets_rows(texts: list[str]) -> object:
    from datasets import Dataset

    return Dataset.from_dict({"text": texts}).map(lambda row: {"text": arabic.normalise(row["text"])})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[500_000], help="sizes to run the whole stage at"
    )
    parser.add_argument(
        "--alternatives-rows",
        type=int,
        default=50_000,
        help="rows for the part-by-part comparison; 0: leave it out",
    )
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "models/nano/tokenizer.json")
    arguments = parser.parse_args()
    quiet()
    (ROOT / ".cache").mkdir(exist_ok=True)
    for rows in arguments.rows:
        stage_whole(rows, arguments.tokenizer)
    if arguments.alternatives_rows:
        parts(arguments.alternatives_rows)


if __name__ == "__main__":
    with one_line_errors():
        main()
