"""The account of formatted rows: counts that add up, lengths, and the dropped rows for people to look at."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.gate import documents
from stages.gate.examples import Examples
from stages.gate.leaks import Index
from stages.gate.quality import ANSWERS

DROPPED = pa.schema([(name, pa.string()) for name in ("dataset", "id", "reason", "detail", "text")])
EDGES = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # of the histogram of lengths, in tokens
TEXT_LIMIT = 2000  # characters of a dropped row that the report shows


@dataclass
class Tally:
    """Counts over the rows seen so far. `counts` goes by (dataset, reason or split)."""

    counts: Counter = field(default_factory=Counter)
    tokens: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    arabic: Counter = field(default_factory=Counter)  # shares of letters, summed over rows
    latin: Counter = field(default_factory=Counter)
    saved: Counter = field(default_factory=Counter)
    pieces: Counter = field(default_factory=Counter)  # of documents, beyond the first of each
    cut: Counter = field(default_factory=Counter)  # conversations, and the answers that they have lost
    cut_answers: Counter = field(default_factory=Counter)
    leaks: Counter = field(default_factory=Counter)
    noted: Counter = field(default_factory=Counter)  # by (dataset, "repaired" or "defects", what)
    examples: dict[str, str] = field(default_factory=dict)  # the first row of each reason, in words
    repeated: list[dict] = field(default_factory=list)
    repeats: Counter = field(default_factory=Counter)  # by dataset, reason, and the dataset repeated
    seen: Examples = field(default_factory=Examples)
    shown: dict[str, list[dict]] = field(default_factory=dict)  # rows for people, by reason

    def add(self, rows: pa.Table, start: int) -> None:
        """Count a table of one dataset's rows, the first of which is the row `start` of all."""
        dataset = rows["dataset"][0].as_py()
        outcome = pc.if_else(pc.equal(rows["reason"], ""), rows["split"], rows["reason"])
        self.counts.update(
            {(dataset, pair["values"]): pair["counts"] for pair in pc.value_counts(outcome).to_pylist()}
        )
        for reason in set(outcome.unique().to_pylist()) - set(self.examples) - {"train", "validation"}:
            first = rows.slice(pc.index(outcome, reason).as_py(), 1).to_pylist()[0]
            self.examples[reason] = f"{first['id']} {first['detail']}".strip()
        kept = rows.filter(pc.equal(rows["reason"], ""))
        lines = documents.in_pieces(kept)
        self.tokens[dataset].append(lines["tokens"].to_numpy())
        self.pieces[dataset] += len(lines) - len(kept)
        cut = pc.filter(kept["cut"], pc.greater(kept["cut"], 0))
        self.cut[dataset] += len(cut)
        self.cut_answers[dataset] += pc.sum(cut, min_count=0).as_py()
        self.arabic[dataset] += pc.sum(kept["arabic"], min_count=0).as_py()
        self.latin[dataset] += pc.sum(kept["latin"], min_count=0).as_py()
        self.saved[dataset] += pc.sum(kept["saved"], min_count=0).as_py()
        for column in ("repaired", "defects"):
            names = pc.value_counts(pc.list_flatten(kept[column])).to_pylist()
            self.noted.update({(dataset, column, pair["values"]): pair["counts"] for pair in names})
        self.seen.add(rows, start)
        self.leaks.update(leak for leak in rows["leak"].to_pylist() if leak)


def dropped(rows: pa.Table, role: str) -> pa.Table:
    """The rows that are not trained on and those that are flagged: dataset, id, reason, what is wrong, and
    the row's text.
    """
    flagged = pc.and_(pc.equal(rows["reason"], ""), pc.not_equal(rows["leak"], ""))
    reason = pc.if_else(flagged, "leak_kept", rows["reason"])
    detail = pc.if_else(flagged, rows["leak"], rows["detail"])
    rows = rows.set_column(rows.schema.get_field_index("reason"), "reason", reason)
    rows = rows.set_column(rows.schema.get_field_index("detail"), "detail", detail)
    rows = rows.filter(pc.not_equal(reason, ""))
    whole = pc.binary_join_element_wise(rows["prompt"], *(rows[name] for name in ANSWERS[role]), "")
    text = pc.utf8_slice_codeunits(pc.coalesce(whole, rows["text"]), 0, TEXT_LIMIT)
    return rows.set_column(rows.schema.get_field_index("text"), "text", text).select(DROPPED.names)


def report(tally: Tally, sources: dict[str, dict], index: Index) -> dict:
    """Where every row went, over all and by dataset; `rows` = train + validation + the sum of `dropped`."""
    total = Counter()
    for (_, outcome), count in tally.counts.items():
        total[outcome] += count
    return {
        **outcomes(total),
        "tokens": lengths([part for parts in tally.tokens.values() for part in parts]),
        "sources": {name: source_report(name, source, tally) for name, source in sources.items()},
        "leaks": leak_report(tally, index),
        "repeated": tally.repeated,
        "examples": tally.shown,
    }


def source_report(name: str, source: dict, tally: Tally) -> dict:
    own = Counter({outcome: n for (dataset, outcome), n in tally.counts.items() if dataset == name})
    kept = own["train"] + own["validation"]
    tokens = lengths(tally.tokens[name])
    return {
        "published": source["published"],
        **outcomes(own),
        "repeats": by_kind(name, tally.repeats),
        **{"repaired": {}, "defects": {}, **by_kind(name, tally.noted)},
        "truncated_share": round(own["too_long"] / max(own.total(), 1), 4),
        "arabic_share": round(tally.arabic[name] / max(kept, 1), 4),
        "latin_share": round(tally.latin[name] / max(kept, 1), 4),
        "tokens_saved_share": round(tally.saved[name] / max(tokens["total"] + tally.saved[name], 1), 4),
        "tokens": tokens,
        "shortened": {"rows": tally.cut[name], "answers": tally.cut_answers[name]},
        "lines": kept + tally.pieces[name],
    }


def by_kind(name: str, counts: Counter) -> dict[str, dict[str, int]]:
    """The counts of one dataset, by kind: as how many of its rows repeat rows of which dataset."""
    found = defaultdict(dict)
    for (dataset, kind, what), count in sorted(counts.items()):
        if dataset == name:
            found[kind][what] = count
    return dict(found)


def outcomes(counts: Counter) -> dict:
    lost = {reason: n for reason, n in sorted(counts.items()) if reason not in ("train", "validation")}
    return {
        "rows": counts.total(),
        "train": counts["train"],
        "validation": counts["validation"],
        "dropped": lost,
    }


def lengths(parts: list[np.ndarray]) -> dict:
    """Of prompt and longest answer with their markup, in tokens: total, mean, percentiles, and a
    histogram.
    """
    tokens = np.concatenate(parts) if parts else np.array([], int)
    if not len(tokens):
        return {"total": 0}
    counts = np.histogram(tokens, [0, *(edge + 1 for edge in EDGES), np.inf])[0]
    names = [*(f"to_{edge}" for edge in EDGES), "longer"]
    return {
        "total": int(tokens.sum()),
        "mean": round(float(tokens.mean()), 1),
        **{f"p{p}": int(np.percentile(tokens, p)) for p in (50, 90, 95, 99)},
        "max": int(tokens.max()),
        "histogram": {name: int(count) for name, count in zip(names, counts) if count},
    }


def leak_report(tally: Tally, index: Index) -> dict:
    """By benchmark: its items, those too short to be told from chance, those found in training rows, and how
    many rows.
    """
    found = {benchmark: {} for benchmark in index.items}
    for leak, rows in tally.leaks.items():
        benchmark, item = leak.split("\t")
        found[benchmark][item] = rows
    return {
        benchmark: {
            "items": items,
            "unchecked": index.unchecked.get(benchmark, 0),
            "leaked_items": len(found[benchmark]),
            "rows": sum(found[benchmark].values()),
        }
        for benchmark, items in index.items.items()
    }
