"""The page that shows people what became of their rows."""

import json
import re
from collections import Counter

import pyarrow as pa
import pytest

from stages import base, report
from stages import format as formatting
from stages.gate.examples import MOST, Examples, spread
from stages.gate.quality import schema
from stages.settings.files import read_json
from stages.sources import layouts
from tests.conftest import ROOT
from tests.test_format import sources
from tests.test_web import browser, needs_browser  # noqa: F401

LONG = " ".join(f"كلمة{i}" for i in range(60))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The pages of a small mixture, by language, and the account they are made from."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "models").mkdir()
    for part in ("stages", "params.yaml", "dvc.yaml", "models/nano"):
        (folder / part).symlink_to(ROOT / part)
    first = [layouts.instruction(f"سؤال رقم {i}", f"جواب {i}") for i in range(40)]
    first += [layouts.instruction("سؤال رقم 3", "جواب 3")] * 2
    first += [layouts.instruction("ما هذا <b>؟", LONG), layouts.instruction("ما هذا <b>؟", LONG + " نهاية")]
    second = [layouts.instruction(f"سؤال رقم {i}", f"جواب {i}.") for i in range(5)]
    second += [layouts.instruction("كيـــف\u200f حالك؟", "بخيـــر والحمد لله")]
    second += [{"fault": "malformed", "detail": "x is int", "original": '{"x": 1}'}]
    talk = [
        one for i in range(300) for one in layouts.turn("user", f"عد {i}") + layouts.turn("assistant", "نعم")
    ]
    second += [layouts.conversation(talk), layouts.document("نص طويل. " * 900)]
    pair = layouts.pair("ما رأيك؟", "نعم", "لا")
    sources(folder, "instructions", first=first, second=second)
    sources(folder, "preferences", votes=[pair, layouts.pair("وما رأيك أنت؟", "لا", "نعم"), pair])
    sources(folder, "benchmarks", exam=[{"fault": "empty", "detail": "no answer", "question": "ما هذا؟"}])
    raw = folder / "data/raw/continued"
    raw.mkdir()
    (raw / "sources.json").write_text("{}", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        base.main()
        for role in report.ROLES:
            formatting.main(role)
        report.main()
    texts = {
        language: (folder / "data/reports" / name).read_text(encoding="utf-8")
        for language, name in report.PAGES.items()
    }
    return texts, folder


def test_rows_are_shown_as_turns_with_what_became_of_them(pages):
    texts, folder = pages
    english, arabic = texts["en"], texts["ar"]
    for page in (english, arabic):
        assert '<meta name="viewport" content="width=device-width' in page
        assert not re.search(r"im_start|im_end|<b>؟", page)  # turns, and nothing of the data is markup
        assert 'class="turn chosen"' in page
        assert 'class="turn assistant gone"' in page  # of a conversation that is too long
        assert "<mark> نهاية</mark>" in page
    assert '<html lang="en" dir="ltr">' in english
    assert '<html lang="ar" dir="rtl">' in arabic
    assert "<b>assistant</b>" in english
    assert "<b>المساعد</b>" in arabic
    assert "index.ar.html" in english
    assert "index.html" in arabic
    account = read_json(folder / "data/reports/instructions.json")
    for reason, count in account["dropped"].items():
        assert f"<h4>{reason} {count} <small>{report.REASONS[reason][0]}" in english
    assert account["sources"]["second"]["shortened"]["rows"] == 1
    assert account["sources"]["second"]["lines"] > account["sources"]["second"]["train"]


def test_examples_are_spread_over_datasets_and_stand_beside_their_twins(pages):
    _, folder = pages
    account = read_json(folder / "data/reports/instructions.json")
    shown = account["examples"]
    duplicates = Counter(row["dataset"] for row in shown["duplicate"])
    assert set(duplicates) == {"first", "second"}
    assert all(row["twin"]["id"].startswith("first:") for row in shown["duplicate"])
    (near,) = shown["near_duplicate"]
    assert (near["id"], near["twin"]["id"]) == ("first:43", "first:42")
    assert near["twin"]["turns"][1]["content"] == LONG
    cleaned = shown["kept"][0]
    assert (cleaned["before"][0]["content"], cleaned["turns"][0]["content"]) == (
        "كيـــف\u200f حالك؟",
        "كيف حالك؟",
    )
    assert [(one["id"], one["times"]) for one in account["repeated"]] == [("first:3", 3)]  # not those of once
    assert shown["malformed"][0]["text"] == '{"x": 1}'
    whole = read_json(folder / "data/reports/account.json")["instructions"]
    assert not {"examples", "repeated"} & set(whole)


def test_what_differs_far_into_a_text_is_seen():
    words = [f"كلمة{i}" for i in range(500)]
    one, other = " ".join(words), " ".join([*words[:400], "غيرها", *words[401:]])
    left, right = report.marked(one, other)
    assert "<mark>كلمة400</mark>" in left
    assert "<mark>غيرها</mark>" in right
    assert len(left) < 1000
    assert report.marked("<a>", "<a>") == ("&lt;a&gt;", "&lt;a&gt;")
    assert "ثلاثة <mark>أ</mark>" in report.marked("ثلاثة أ", "ثلاثة ب")[0]


def test_of_each_reason_a_few_rows_of_every_dataset():
    found = Examples()
    for number, dataset in enumerate("abc"):
        row = {"dataset": dataset, "reason": "empty", "detail": "", "leak": "", "cut": 0, "saved": 0}
        found.add(pa.Table.from_pylist([row] * 50, schema("instructions")), 50 * number)
    assert found.chosen() == {"empty": [0, 50, 100, 1, 51, 101], "kept": []}
    assert len(spread([range(100)])) == MOST
    assert spread([[1, 2], [3]]) == [1, 3, 2]


def test_every_word_stands_there_in_both_languages():
    assert all(len(both) == 2 and all(both) for both in (*report.WORDS.values(), *report.REASONS.values()))
    assert all(re.search("[ء-ي]", arabic) for _, arabic in report.REASONS.values())
    assert json.dumps(report.Words("ar")["p50"]) == '"p50"'


@needs_browser
@pytest.mark.parametrize("language", report.PAGES)
def test_a_phone_shows_it_without_scrolling_sideways(pages, browser, language):  # noqa: F811
    _, folder = pages
    page = browser.new_page(viewport={"width": 360, "height": 800})
    page.goto((folder / "data/reports" / report.PAGES[language]).as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.close()
