"""What became of every row → metrics/data.json, how many; data/reports/account.json, where each went;
data/reports/index.html and index.ar.html, the same for people, in English and in Arabic.

The benchmarks' rows that cannot be used are listed in data/reports/benchmarks.parquet, as format lists those
of the other roles.
"""

import re
from collections import Counter, defaultdict
from difflib import SequenceMatcher
from html import escape
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from stages.gate import examples
from stages.settings.errors import one_line_errors
from stages.settings.files import read_json, replace_file, write_json
from stages.settings.stage import stage

RAW, REPORTS = Path("data/raw"), Path("data/reports")
ROLES = ("instructions", "preferences", "continued")
PAGES = {"en": "index.html", "ar": "index.ar.html"}


def main() -> None:
    with stage("report"):
        roles = {role: read_json(REPORTS / f"{role}.json") for role in ROLES}
        benchmarks, faults = benchmark_report()
        account = {
            role: {name: value for name, value in report.items() if name not in ("repeated", "examples")}
            for role, report in roles.items()
        }
        write_json(REPORTS / "account.json", {**account, "benchmarks": benchmarks})
        write_json(Path("metrics/data.json"), {**counts(roles), "benchmarks": counts(benchmarks)})
        for language, name in PAGES.items():
            with replace_file(REPORTS / name) as temporary:
                temporary.write_text(page(language, roles, benchmarks, faults), encoding="utf-8")


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


def benchmark_report() -> tuple[dict, dict[str, list[dict]]]:
    """The same account of every benchmark, whose unusable rows are written out; and some of these, by
    reason.
    """
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
    return counts, some(dropped)


def some(dropped: list[dict]) -> dict[str, list[dict]]:
    """A few rows of each reason, spread over the datasets."""
    found = defaultdict(lambda: defaultdict(list))
    for row in dropped:
        own = found[row["reason"]][row["dataset"]]
        if len(own) < examples.PER_DATASET:
            own.append(row)
    return {reason: examples.spread(own.values()) for reason, own in sorted(found.items())}


# --- the page -----------------------------------------------------------------------------------------------

SHOWN = 700  # characters of a turn; where two are compared, those around a difference
ENDS = 4  # turns at either end of a conversation
STYLE = """
:root { color-scheme: light dark; --green: #2a7f62; --red: #b3412e; }
* { box-sizing: border-box; }
body { font: 16px/1.6 system-ui, sans-serif; max-width: 70rem; margin: 1.5rem auto; padding: 0 1rem; }
h2 { margin-top: 3rem; border-bottom: 2px solid var(--green); }
h4 { margin: 2rem 0 .5rem; }
h4 small, .about { font-weight: normal; opacity: .75; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0; }
th, td { padding: .25rem .75rem; border-bottom: 1px solid #8884; text-align: start; vertical-align: top; }
td.n { text-align: end; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { display: inline-block; height: .8rem; background: var(--green); }
.row { border: 1px solid #8884; border-radius: .5rem; padding: .5rem .75rem; margin: .75rem 0; }
.row > .about { font-size: .85rem; overflow-wrap: anywhere; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: .75rem; }
.turn { margin: .4rem 0; padding: .3rem .7rem; border-radius: .7rem; background: #8882; width: fit-content;
        max-width: 100%; overflow-wrap: anywhere; }
.turn b { display: block; font-size: .75rem; opacity: .7; }
.turn p { margin: 0; white-space: pre-wrap; unicode-bidi: plaintext; }
.user { margin-inline-end: 1.5rem; }
.assistant, .chosen, .rejected { margin-inline-start: 1.5rem; background: #2a7f6226; }
.chosen { border-inline-start: 4px solid var(--green); }
.rejected { border-inline-start: 4px solid var(--red); background: #b3412e1f; }
.system { border: 1px dashed #888; background: none; }
.gone { opacity: .5; text-decoration: line-through; }
mark { background: #f2c14e88; color: inherit; border-radius: .2rem; }
"""
# What the page says, in English and in Arabic.
WORDS = {
    "title": ("Data report", "تقرير البيانات"),
    "other": ("العربية", "English"),
    "instructions": ("Instructions", "التعليمات"),
    "preferences": ("Preferences", "التفضيلات"),
    "continued": ("Continued training", "التدريب المتابع"),
    "benchmarks": ("Benchmarks", "الاختبارات"),
    "dataset": ("dataset", "مجموعة البيانات"),
    "benchmark": ("benchmark", "الاختبار"),
    "published": ("published", "المنشور"),
    "rows": ("taken", "المأخوذ"),
    "train": ("train", "للتدريب"),
    "validation": ("held out", "المحجوز"),
    "kept": ("kept", "المحفوظ"),
    "dropped": ("dropped", "المحذوف"),
    "why": ("why", "السبب"),
    "none": ("none", "لا شيء"),
    "lengths": ("Tokens", "الرموز"),
    "lines": ("rows to train on", "صفوف التدريب"),
    "total": ("total", "المجموع"),
    "mean": ("mean", "المتوسط"),
    "max": ("max", "الأكثر"),
    "too_long_share": ("too long", "أطول من اللازم"),
    "saved": ("saved by cleaning", "ما وفره التنظيف"),
    "tokens": ("tokens", "رموز"),
    "up to": ("up to", "حتى"),
    "longer": ("longer", "أطول"),
    "count": ("rows", "صفوف"),
    "languages": ("Letters of the kept rows", "حروف الصفوف المحفوظة"),
    "arabic": ("Arabic", "عربية"),
    "latin": ("Latin", "لاتينية"),
    "script": ("other", "غيرها"),
    "doubts": ("Repaired, and doubtful", "ما أصلح وما يشك فيه"),
    "repaired": ("repaired", "ما أصلح"),
    "defects": ("doubtful, and kept", "مشكوك فيه ومحفوظ"),
    "leaks": ("Benchmark questions in training rows", "أسئلة الاختبارات في صفوف التدريب"),
    "items": ("items", "الأسئلة"),
    "unchecked": ("too short to check", "أقصر من أن تفحص"),
    "leaked_items": ("items found", "أسئلة وجدت"),
    "leaked_rows": ("training rows", "صفوف التدريب"),
    "repeated": ("Repeated most often", "الأكثر تكرارا"),
    "times": ("times", "مرة"),
    "examples": ("Examples", "أمثلة"),
    "before": ("before cleaning", "قبل التنظيف"),
    "after": ("after", "بعده"),
    "unchanged": ("cleaning changed nothing", "لم يغير التنظيف شيئا"),
    "this": ("dropped", "المحذوف"),
    "twin": ("the row that stays", "الصف الباقي"),
    "more": ("… {} turns …", "… {} دورا …"),
    "system": ("system", "النظام"),
    "user": ("user", "المستخدم"),
    "assistant": ("assistant", "المساعد"),
    "text": ("document", "نص"),
    "chosen": ("chosen", "المفضل"),
    "rejected": ("rejected", "المرفوض"),
}
REASONS = {
    "malformed": ("its cells cannot be read", "خانات لا تقرأ"),
    "translated_code": ("its code was translated, too", "ترجمت الشيفرة مع النص"),
    "shifted_turns": ("turns stand one place too far", "الأدوار مزاحة عن مواضعها"),
    "swapped_turns": ("question and answer are swapped", "السؤال والجواب معكوسان"),
    "no_shared_prompt": ("its two answers are to different prompts", "الجوابان لسؤالين مختلفين"),
    "empty": ("a turn is empty", "دور فارغ"),
    "too_short": ("the answer is too short", "الجواب أقصر من اللازم"),
    "too_long": ("longer than prompt.max_length", "أطول من prompt.max_length"),
    "special_token": ("holds a token of the template", "فيه رمز من رموز القالب"),
    "wrong_language": ("too few Arabic letters", "حروفه العربية قليلة"),
    "chosen_is_rejected": ("both answers are the same", "الجوابان سواء"),
    "answer_is_prompt": ("the answer repeats the question", "الجواب هو السؤال نفسه"),
    "contradiction": ("preferred the other way round elsewhere", "فضل عكسه في موضع آخر"),
    "duplicate": ("the same words as an earlier row", "كلمات صف سابق نفسها"),
    "near_duplicate": ("nearly the same as an earlier row", "يكاد يطابق صفا سابقا"),
    "leak": ("holds a question of a benchmark", "فيه سؤال من اختبار"),
    "leak_kept": ("holds a question of a benchmark, and is kept", "فيه سؤال من اختبار، وهو محفوظ"),
    "overwritten": ("another question stands in its place", "حل محله سؤال آخر"),
    "equal_choices": ("two choices are the same", "خياران متطابقان"),
    "cut_off": ("the answer ends in mid-sentence", "الجواب مقطوع في وسط جملة"),
    "refusal": ("the answer refuses, or speaks as a model", "الجواب رفض أو كلام عن نموذج لغوي"),
    "html_entities": ("holds HTML entities", "فيه رموز HTML"),
    "private_use": ("holds characters without a meaning", "فيه محارف لا معنى لها"),
    "replacement_character": ("has lost characters", "ضاعت منه محارف"),
    "stretched": ("a letter six times and more", "حرف مكرر ست مرات فأكثر"),
    "shortened": ("a conversation without the turns that did not fit", "محادثة دون الأدوار التي لم تتسع"),
    "kept": ("kept: some that cleaning changed most", "محفوظ: من أكثر ما غيره التنظيف"),
}


class Words:
    """The page's words in one language; what has none there is said as it is."""

    def __init__(self, language: str):
        self.place = list(PAGES).index(language)

    def __getitem__(self, name: str) -> str:
        return WORDS[name][self.place] if name in WORDS else name

    def reason(self, name: str) -> str:
        return REASONS[name][self.place] if name in REASONS else ""


def page(language: str, roles: dict[str, dict], benchmarks: dict, faults: dict[str, list[dict]]) -> str:
    say, other = Words(language), next(one for one in PAGES if one != language)
    direction = "rtl" if language == "ar" else "ltr"
    rows = [
        [name, *(one[key] for key in ("published", "rows", "kept")), listed(one["dropped"], say)]
        for name, one in benchmarks.items()
    ]
    lost = sum((Counter(one["dropped"]) for one in benchmarks.values()), Counter())
    body = "".join(role_section(role, report, say) for role, report in roles.items() if report["rows"])
    body += section("benchmarks", say) + table(["benchmark", "published", "rows", "kept", "why"], rows, say)
    body += shown(faults, lost, say)
    return (
        f'<!doctype html><html lang="{language}" dir="{direction}"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{say['title']}</title><style>{STYLE}</style><h1>{say['title']}</h1>"
        f'<p><a lang="{other}" href="{PAGES[other]}">{say["other"]}</a></p>{body}</html>\n'
    )


def section(name: str, say: Words, level: int = 2) -> str:
    return f"<h{level}>{escape(say[name])}</h{level}>"


def role_section(role: str, report: dict, say: Words) -> str:
    sources = report["sources"]
    columns = ("published", "rows", "train", "validation")
    rows = [
        [name, *(one[c] for c in columns), sum(one["dropped"].values()), listed(one["dropped"], say)]
        for name, one in sources.items()
    ]  # fmt: skip
    lengths = ("total", "mean", "p50", "p95", "p99", "max")
    tokens = [
        [name, one["lines"], *(one["tokens"].get(c, 0) for c in lengths),
         *(Percent(one[c]) for c in ("truncated_share", "tokens_saved_share"))]
        for name, one in sources.items()
    ]  # fmt: skip
    letters = [
        [name, *map(Percent, (a, b, max(0, 1 - a - b))), Bar(a)]
        for name, one in sources.items()
        for a, b in [(one["arabic_share"], one["latin_share"])]
    ]
    doubts = [
        [name, listed(one["repaired"], say), listed(one["defects"], say)] for name, one in sources.items()
    ]
    found = [
        [name, *(leak[c] for c in ("items", "unchecked", "leaked_items", "rows"))]
        for name, leak in report["leaks"].items()
    ]
    repeated = [
        example(one | {"detail": f"{one['times']:,} {say['times']}"}, say) for one in report["repeated"]
    ]
    shortened = sum(one["shortened"]["rows"] for one in sources.values())
    return (
        section(role, say)
        + table(["dataset", *columns, "dropped", "why"], rows, say)
        + section("lengths", say, 3)
        + table(["dataset", "lines", *lengths, "too_long_share", "saved"], tokens, say)
        + histogram(report["tokens"].get("histogram", {}), say)
        + section("languages", say, 3)
        + table(["dataset", "arabic", "latin", "script", ""], letters, say)
        + section("doubts", say, 3)
        + table(["dataset", "repaired", "defects"], doubts, say)
        + section("leaks", say, 3)
        + table(["benchmark", "items", "unchecked", "leaked_items", "leaked_rows"], found, say)
        + section("repeated", say, 3)
        + ("".join(repeated) or f"<p>{say['none']}</p>")
        + shown(report["examples"], report["dropped"] | {"shortened": shortened}, say)
    )


# --- rows ---------------------------------------------------------------------------------------------------


def shown(found: dict[str, list[dict]], counts: dict[str, int], say: Words) -> str:
    """Examples of every reason, the kept ones last."""
    parts = [section("examples", say, 3)]
    for reason in sorted(found, key=lambda reason: (reason == examples.KEPT, reason)):
        number = f"{counts[reason]:,}" if counts.get(reason) else ""
        title = "" if reason == examples.KEPT else f"{escape(reason)} {number} "
        parts.append(f"<h4>{title}<small>{escape(say.reason(reason))}</small></h4>")
        parts += [example(row, say) for row in found[reason]]
    return "".join(parts)


def example(row: dict, say: Words) -> str:
    """A row with what it says: as bubbles, beside its twin or itself before cleaning, or as it was found."""
    about = " · ".join(f"<bdi>{escape(one)}</bdi>" for one in (row["id"], row["detail"]) if one)
    if "twin" in row:
        here, there = compared(row["turns"], row["twin"]["turns"], say)
        titles = (f"{say['this']}: {row['id']}", f"{say['twin']}: {row['twin']['id']}")
        about, body = "", sides(*zip(titles, (here, there)))
    elif "before" in row and row["before"] != row["turns"]:
        body = sides(*zip((say["before"], say["after"]), compared(row["before"], row["turns"], say)))
    elif "turns" in row:
        about += f" · {say['unchanged']}" if "before" in row else ""
        body = bubbles(row["turns"], say, row.get("cut", 0))
    else:
        body = bubble("", escape(shortened(row["text"] or "")), say)
    return f'<div class="row"><div class="about">{about}</div>{body}</div>'


def sides(*parts: tuple[str, str]) -> str:
    columns = (f'<div><div class="about">{isolated(title)}</div>{body}</div>' for title, body in parts)
    return f'<div class="sides">{"".join(columns)}</div>'


def isolated(title: str) -> str:
    """A title with an id, whose direction is its own."""
    name, colon, own = title.partition(": ")
    return f"{escape(name)}{colon}<bdi>{escape(own)}</bdi>"


def bubbles(turns: list[dict], say: Words, cut: int = 0) -> str:
    """Turns one below another, those far from both ends left out; of the last ones those with the last `cut`
    answers are struck through.
    """
    answers = [place for place, one in enumerate(turns) if one["role"] == "assistant"]
    kept = answers[-cut - 1] + 1 if 0 < cut < len(answers) else len(turns)
    shown = [
        bubble(one["role"], escape(shortened(one["content"])), say, gone=place >= kept)
        for place, one in enumerate(turns)
    ]
    if (hidden := len(turns) - 2 * ENDS) > 1:
        shown[ENDS:-ENDS] = [f"<p>{escape(say['more'].format(hidden))}</p>"]
    return "".join(shown)


def bubble(role: str, text: str, say: Words, gone: bool = False) -> str:
    label = f"<b>{escape(say[role])}</b>" if role else ""
    return f'<div class="turn {escape(role)}{" gone" * gone}">{label}<p dir="auto">{text}</p></div>'


def shortened(text: str) -> str:
    return text if len(text) <= SHOWN else text[:SHOWN] + " …"


def compared(one: list[dict], other: list[dict], say: Words) -> tuple[str, str]:
    """Two rows as bubbles, in which the words that differ are marked. Turns are compared by their order."""
    left, right = [], []
    for place in range(max(len(one), len(other))):
        pair = [turns[place] if place < len(turns) else None for turns in (one, other)]
        texts = marked(*(turn["content"] if turn else "" for turn in pair))
        for turn, text, side in zip(pair, texts, (left, right)):
            side += [bubble(turn["role"], text, say)] if turn else []
    return "".join(left), "".join(right)


WORD = re.compile(r"\s+|[\w\u064b-\u0652\u0640]+|.", re.DOTALL)
AROUND = 20  # words and blanks beside a difference; what lies farther off is left out


def marked(one: str, other: str) -> tuple[str, str]:
    """Two texts as HTML, with the words marked that the other lacks."""
    left, right = WORD.findall(one), WORD.findall(other)
    parts = SequenceMatcher(None, left, right, autojunk=False).get_opcodes()
    found = ([], [])
    for number, (kind, a, b, c, d) in enumerate(parts):
        for words, side in ((left[a:b], found[0]), (right[c:d], found[1])):
            if kind == "equal":
                side.append(escape(excerpt(words, number > 0, number + 1 < len(parts))))
            elif words:
                side.append(f"<mark>{escape(''.join(words))}</mark>")
    return "".join(found[0]), "".join(found[1])


def excerpt(words: list[str], after: bool, before: bool) -> str:
    """Words that two texts share, without what is far from a difference before or after them."""
    if len(words) <= 3 * AROUND:
        return "".join(words)
    if not after and not before:
        return shortened("".join(words))
    start, end = "".join(words[:AROUND]) * after, "".join(words[-AROUND:]) * before
    return f"{start} … {end}"


# --- tables -------------------------------------------------------------------------------------------------


def histogram(counts: dict[str, int], say: Words) -> str:
    most = max(counts.values(), default=1)
    rows = [[name.replace("to_", say["up to"] + " "), n, Bar(n / most)] for name, n in counts.items()]
    return table(["tokens", "count", ""], [[say[name], *rest] for name, *rest in rows], say)


class Bar(float):
    """A share of the longest bar, 0..1."""


class Percent(float):
    """A share, 0..1."""


def table(header: list[str], rows: list[list], say: Words) -> str:
    if not rows:
        return f"<p>{say['none']}</p>"
    head = "".join(f"<th>{escape(say[name])}</th>" for name in header)
    lines = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{lines}</table></div>'


def cell(value: object) -> str:
    if isinstance(value, Bar):
        return f'<td><span class="bar" style="width:{10 * value:.1f}rem"></span></td>'
    if isinstance(value, Percent):
        return f'<td class="n">{100 * value:.1f} %</td>'
    if isinstance(value, (int, float)):
        return f'<td class="n">{value:,}</td>'
    return f'<td dir="auto">{escape(str(value))}</td>'


def listed(counts: dict[str, int], say: Words) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items()) or say["none"]


if __name__ == "__main__":
    with one_line_errors():
        main()
