"""What became of every row → metrics/data.json, how many; data/reports/account.json, where each went;
data/reports/index.html, the same for people.

The benchmarks' rows that cannot be used are listed in data/reports/benchmarks.parquet, as format lists those
of the other roles.
"""

from collections import Counter, defaultdict
from html import escape
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from stages.settings.errors import one_line_errors
from stages.settings.files import read_json, replace_file, write_json
from stages.settings.stage import stage

RAW, REPORTS = Path("data/raw"), Path("data/reports")
ROLES = ("instructions", "preferences", "continued")
EXAMPLES = 3  # of each reason


def main() -> None:
    with stage("report"):
        roles = {role: read_json(REPORTS / f"{role}.json") for role in ROLES}
        benchmarks = benchmark_report()
        account = {
            role: {name: value for name, value in report.items() if name != "repeated"}
            for role, report in roles.items()
        }
        write_json(REPORTS / "account.json", {**account, "benchmarks": benchmarks})
        write_json(Path("metrics/data.json"), {**counts(roles), "benchmarks": counts(benchmarks)})
        with replace_file(REPORTS / "index.html") as temporary:
            temporary.write_text(page(roles, benchmarks), encoding="utf-8")


def counts(reports: dict[str, dict]) -> dict:
    """By name, how many rows are used and how many are dropped: what `dvc metrics diff` shows."""
    return {
        name: {
            "used": report["rows"] - (lost := sum(report["dropped"].values())),
            "dropped": lost,
        }
        for name, report in reports.items()
        if report["rows"]
    }


def benchmark_report() -> dict:
    """The same account of every benchmark, whose unusable rows are written out."""
    counts, dropped = {}, []
    for name, source in read_json(RAW / "benchmarks/sources.json").items():
        rows = parquet.read_table(RAW / f"benchmarks/{name}.parquet").to_pylist()
        faults = [row for row in rows if row["fault"]]
        lost = Counter(row["fault"] for row in faults)
        kept = len(rows) - len(faults)
        counts[name] = {
            "published": source["published"],
            "rows": len(rows),
            "kept": kept,
            "dropped": dict(sorted(lost.items())),
        }
        dropped += [
            {
                "dataset": name,
                "id": row["id"],
                "reason": row["fault"],
                "detail": row["detail"],
                "text": row["original"] or row["question"],
            }
            for row in faults
        ]
    schema = parquet.read_schema(REPORTS / "instructions.parquet")
    with replace_file(REPORTS / "benchmarks.parquet") as temporary:
        parquet.write_table(pa.Table.from_pylist(dropped, schema), temporary)
    return counts


# --- the page -----------------------------------------------------------------------------------------------

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .75rem; border-bottom: 1px solid #ddd; text-align: start; }
td.n { text-align: end; font-variant-numeric: tabular-nums; }
.text { unicode-bidi: plaintext; white-space: pre-wrap; max-width: 44rem; overflow-wrap: anywhere; }
.bar { display: inline-block; height: .8rem; background: #2a7f62; }
"""


def page(roles: dict[str, dict], benchmarks: dict) -> str:
    body = "".join(role_section(role, report) for role, report in roles.items())
    rows = [
        [name, *(one[key] for key in ("published", "rows", "kept")), listed(one["dropped"])]
        for name, one in benchmarks.items()
    ]
    body += (
        "<h2>benchmarks</h2>"
        + table(["benchmark", "published", "taken", "kept", "dropped"], rows)
        + examples("benchmarks")
    )
    head = f'<meta charset="utf-8"><title>Data report</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en">{head}<h1>Data report</h1>{body}</html>\n'


def role_section(role: str, report: dict) -> str:
    sources, leaks = report["sources"], report["leaks"]
    columns = ("published", "rows", "train", "validation")
    rows = [
        [name, *(source[c] for c in columns), sum(source["dropped"].values()), listed(source["dropped"])]
        for name, source in sources.items()
    ]  # fmt: skip
    tokens = [
        [name, *(source["tokens"].get(c, 0) for c in ("total", "mean", "p50", "p95", "p99", "max")),
         *(percent(source[c]) for c in ("truncated_share", "arabic_share", "tokens_saved_share"))]
        for name, source in sources.items()
    ]  # fmt: skip
    found = [
        [name, *(leak[c] for c in ("items", "unchecked", "leaked_items", "rows"))]
        for name, leak in leaks.items()
    ]
    return (
        f"<h2>{role}</h2>"
        + table(["dataset", "published", "taken", "train", "validation", "dropped", "why"], rows)
        + "<h3>Tokens</h3>"
        + table(
            [
                "dataset",
                "total",
                "mean",
                "p50",
                "p95",
                "p99",
                "max",
                "too long",
                "Arabic letters",
                "saved by cleaning",
            ],
            tokens,
        )
        + histogram(report["tokens"].get("histogram", {}))
        + "<h3>Benchmark questions in training rows</h3>"
        + table(["benchmark", "items", "too short to check", "items found", "training rows"], found)
        + "<h3>Repeated most often</h3>"
        + table(
            ["id", "times", "prompt"],
            [[one["id"], one["times"], Text(one["prompt"])] for one in report["repeated"]],
        )
        + examples(role)
    )


class Text(str):
    """Text of the data: every line is shown in its own direction (unicode-bidi: plaintext)."""


def examples(role: str) -> str:
    """A few dropped rows of each reason."""
    by_reason = defaultdict(list)
    for batch in parquet.ParquetFile(REPORTS / f"{role}.parquet").iter_batches():
        for row in batch.to_pylist():
            if len(by_reason[row["reason"]]) < EXAMPLES:
                by_reason[row["reason"]].append(row)
    rows = [
        [reason, row["id"], row["detail"], Text((row["text"] or "")[:300])]
        for reason, own in sorted(by_reason.items())
        for row in own
    ]
    return "<h3>Dropped rows</h3>" + table(["reason", "id", "detail", "text"], rows)


def histogram(counts: dict[str, int]) -> str:
    most = max(counts.values(), default=1)
    return table(
        ["tokens", "rows", ""],
        [[name.replace("to_", "up to "), n, Bar(n / most)] for name, n in counts.items()],
    )


class Bar(float):
    """A share of the longest bar, 0..1."""


def table(header: list[str], rows: list[list]) -> str:
    if not rows:
        return "<p>none</p>"
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{lines}</table>"


def cell(value: object) -> str:
    if isinstance(value, Bar):
        return f'<td><span class="bar" style="width:{20 * value:.1f}rem"></span></td>'
    if isinstance(value, (int, float)):
        return f'<td class="n">{value:,}</td>'
    if isinstance(value, Text):
        return f'<td><div class="text" dir="auto">{escape(value)}</div></td>'
    return f'<td dir="auto">{escape(str(value))}</td>'


def listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items()) or "none"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


if __name__ == "__main__":
    with one_line_errors():
        main()
