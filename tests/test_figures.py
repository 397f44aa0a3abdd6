"""The tables behind the plots, and what `dvc plots show` makes of them."""

import json
import os
import re
import subprocess
import sys

import pytest
import vl_convert
from conftest import ROOT
from ruamel.yaml import YAML

from stages import figures
from stages.evaluation import tables
from stages.settings.files import read_json


def item(**values) -> dict:
    """A row of predictions: by default one that has neither choices nor a generated answer."""
    row = dict.fromkeys(["picked", "gold", "choices", "confidence", "tokens", "stopped", "fault"])
    return row | {"benchmark": "exam", "id": "0", "rotation": 0} | values


def choice(gold: int, picked: int, confidence: float = 0.5, **values) -> dict:
    return item(gold=gold, picked=picked, confidence=confidence, **values)


def score(benchmark: str, value: float, kind: str = "all", name: str = "all") -> dict:
    ends = {"ci_low": value - 0.1, "ci_high": value + 0.1, "stderr": 0.05}
    return {"benchmark": benchmark, "slice": kind, "name": name, "value": value, "n": 80} | ends


def test_confusion_counts_places_and_shares_of_each_right_place():
    rows = [choice(0, 0), choice(0, 0), choice(0, 2), choice(1, 1), choice(2, 0)]
    found = {row["gold"] + row["picked"]: (row["n"], row["share"]) for row in tables.confusion(rows)}
    assert found == {
        "AA": (2, 0.6667), "AB": (0, 0.0), "AC": (1, 0.3333),
        "BA": (0, 0.0), "BB": (1, 1.0), "BC": (0, 0.0),
        "CA": (1, 1.0), "CB": (0, 0.0), "CC": (0, 0.0),
    }  # fmt: skip


def test_reliability_bins_and_calibration_error_by_hand():
    rows = [choice(0, 0, 0.95), choice(0, 1, 0.91), choice(1, 1, 1.0), choice(1, 1, 0.9), choice(0, 1, 0.35)]
    low, high = tables.reliability(rows)
    # 0.9 and 1.0 belong to the last bin: confidence (0.95 + 0.91 + 1.0 + 0.9) / 4 = 0.94, 3 of 4 right
    assert high == {"bin": 0.9, "confidence": 0.94, "accuracy": 0.75, "n": 4, "ece": 0.222}
    # (4 · |0.75 − 0.94| + 1 · |0 − 0.35|) / 5 = 0.222
    assert low == {"bin": 0.3, "confidence": 0.35, "accuracy": 0.0, "n": 1, "ece": 0.222}


def test_stop_rate_by_length():
    lengths = [
        (0, True),
        (1, True),
        (2, True),
        (3, True),
        (4, False),
        (5, True),
        (48, False),
        (48, False),
        (33, True),
    ]
    rows = tables.lengths([item(tokens=tokens, stopped=stopped) for tokens, stopped in lengths])
    assert [tuple(row.values()) for row in rows] == [
        ("0–1", 2, 2, 1.0), ("2", 1, 1, 1.0), ("3–4", 2, 1, 0.5), ("5–8", 1, 1, 1.0), ("33–64", 3, 1, 0.3333),
    ]  # fmt: skip


def test_only_sound_items_in_their_published_order_count():
    rows = [
        choice(1, 1),
        choice(1, 0, rotation=1),
        choice(1, 0, fault="overwritten"),
        item(tokens=5, stopped=True, fault="overwritten"),
    ]
    found = tables.tables(rows, [], {})
    assert [row for row in found["confusion"] if row["n"]] == [
        {"benchmark": "exam", "gold": "B", "picked": "B", "n": 1, "share": 1.0}
    ]
    assert not found["lengths"]


def test_a_checkpoint_without_choices_or_answers_has_empty_tables():
    found = tables.tables([item(score=1.0)], [score("exam", 0.5)], {"stop_rate": None, "cjk_share": 0.12345})
    assert [found[figure] for figure in ("confusion", "reliability", "lengths", "slices")] == [[], [], [], []]
    assert found["health"] == [{"measure": "cjk share", "value": 0.1235}]
    assert found["scores"] == [score("exam", 0.5)]


def test_slices_stand_from_the_best_to_the_worst_of_the_last_checkpoint():
    def of(north, south, high):
        subjects = [score("exam", north, "country", "الشمال"), score("exam", south, "country", "الجنوب")]
        return tables.tables([], [*subjects, score("exam", high, "level", "high")], {})

    rows = figures.side_by_side({"base": of(0.9, 0.2, 0.3), "dpo": of(0.4, 0.6, 0.3)})["slices"]
    assert [(row["checkpoint"], row["name"]) for row in rows] == [
        ("base", "high"), ("dpo", "high"), ("base", "الجنوب"), ("dpo", "الجنوب"), ("base", "الشمال"),
        ("dpo", "الشمال"),
    ]  # fmt: skip


# --- the plots ----------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git and DVC repository with the templates of the project and a stage that joins the tables."""
    monkeypatch.chdir(tmp_path)
    plots = [
        {f"metrics/plots/{name}.tsv": {"cache": False, "template": name, "title": f"Title of {name}"}}
        for name in figures.COLUMNS
    ]
    stages = {
        "figures": {
            "cmd": "python -m stages.figures",
            "deps": ["metrics/tables"],
            "params": ["refine"],
            "plots": plots,
        }
    }
    params = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("refine: []\n", "refine: [ipo]\n")
    (tmp_path / "params.yaml").write_text(params, encoding="utf-8")
    with (tmp_path / "dvc.yaml").open("w", encoding="utf-8") as file:
        YAML().dump({"stages": stages}, file)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/plots").symlink_to(ROOT / ".dvc/plots")
    (tmp_path / ".dvc/config").write_text("[core]\n    analytics = false\n")
    subprocess.run(["git", "init", "-q"], check=True)
    return tmp_path


def evaluate(checkpoint: str, broken: bool = False) -> None:
    """Tables like those of a checkpoint that is sound, or that always says A, never stops and drifts into
    Chinese.
    """
    letters = [choice(gold, 0 if broken else gold, 0.97) for gold in range(4) for _ in range(3)]
    answers = [item(benchmark="skills", tokens=48 if broken else 7, stopped=not broken) for _ in range(5)]
    scores = [
        score("exam", 0.25),
        score("exam", 0.25, "subject", "اللغة العربية (عام)"),
        score("skills", 0.5),
    ]
    tables.write(
        checkpoint,
        "kto" if checkpoint == "dpo" else checkpoint,
        [],
        [*letters, *answers],
        scores,
        {},
        {"stop_rate": float(not broken), "cjk_share": 0.6 if broken else 0.0},
    )


def specifications(*command: str) -> dict[str, dict]:
    """Title → Vega-Lite specification of every plot of the page that `dvc plots` writes; anything it
    complains of fails.
    """
    shown = subprocess.run([sys.executable, "-m", "dvc", "plots", *command], capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (0, "")
    with open("dvc_plots/index.html", encoding="utf-8") as page:
        found = [json.loads(text) for text in re.findall(r"var spec = (.+);", page.read())]
    return {spec["title"]["text"]: spec for spec in found if spec}


def texts(specification: dict) -> list[str]:
    """What stands written in the drawn plot, from Vega-Lite 5.8, the version nearest to that of DVC's
    page.
    """
    return re.findall(r">([^<]+)</text>", vl_convert.vegalite_to_svg(specification, vl_version="5.8"))


def in_order(words: list[str], *expected: str) -> bool:
    return [word for word in dict.fromkeys(words) if word in expected] == list(expected)


def test_the_page_shows_every_figure_with_the_checkpoints_in_their_order(repository):
    for name in ("refine-ipo", "dpo", "sft", "base", "refine-stale"):
        evaluate(name, broken=name == "sft")
    figures.main()
    plots = specifications("show")
    assert set(plots) == {f"Title of {name}" for name in figures.COLUMNS}
    drawn = {name: texts(plots[f"Title of {name}"]) for name in figures.COLUMNS}
    for name, words in drawn.items():
        assert in_order(words, "base", "sft", "kto", "refine-ipo"), name
        assert "refine-stale" not in words, f"{name} shows a checkpoint that is no longer configured"
    assert (
        "\u2068اللغة العربية (عام)\u2069" in drawn["slices"]
    )  # isolated: parentheses stand where an Arabic reader expects them
    assert drawn["confusion"].count("100%") == 4 + 4 + 4 + 4  # the diagonals, and A whatever was right
    assert drawn["reliability"].count("ECE 0.720, n 12") == 1
    assert {"100%", "0%"} <= set(drawn["lengths"])
    assert drawn["health"].count("60.0%") == 1


def test_two_revisions_side_by_side(repository):
    for broken in (False, True):
        evaluate("sft", broken)
        figures.main()
        subprocess.run(
            "git add -A && git -c user.name=t -c user.email=t@t commit -qm t", shell=True, check=True
        )
    names = ["sft (HEAD)", "sft (HEAD~1)"]
    for title, plot in specifications("diff", "HEAD", "HEAD~1").items():
        assert in_order(texts(plot), *names), title


def test_a_checkpoint_that_generates_nothing_leaves_the_other_figures_whole(repository):
    tables.write("base", "base", [], [choice(0, 1)], [score("exam", 0.0)], {}, {})
    figures.main()
    assert set(specifications("show")) == {
        f"Title of {name}" for name in ("scores", "confusion", "reliability")
    }


def test_an_interval_that_does_not_exist_is_not_drawn(repository):
    """As of one answer whose score is neither 0 nor 1."""
    alone = score("exam", 0.5) | dict.fromkeys(("ci_low", "ci_high", "stderr"))
    tables.write("base", "base", [], [], [alone, alone | {"slice": "subject", "name": "لغة"}], {}, {})
    tables.write("sft", "sft", [], [], [score("exam", 0.6), score("exam", 0.6, "subject", "لغة")], {}, {})
    figures.main()
    plots = specifications("show")
    assert {"0.500", "0.600"} <= set(texts(plots["Title of scores"]))  # the score itself is
    for plot in plots.values():
        drawn = vl_convert.vegalite_to_svg(plot, vl_version="5.8")
        assert drawn.count('aria-roledescription="rule mark"') == 1


def test_what_a_dataset_calls_its_parts_ends_no_script(repository):
    name = "</script><script>alert(1)</script>"
    cells = [score("exam", 0.6), score("exam", 0.6, "subject", name), score("exam", 0.5, "subject", "لغة")]
    tables.write("base", "base", [], [], cells, {}, {})
    figures.main()
    subprocess.run([sys.executable, "-m", "dvc", "plots", "show"], check=True, capture_output=True)
    page = (repository / "dvc_plots/index.html").read_text(encoding="utf-8")
    assert "alert(1)" in page
    assert "<script>alert" not in page


def test_no_evaluated_checkpoint_is_a_clear_error(repository):
    with pytest.raises(SystemExit, match=r"metrics/tables holds .*: run `dvc repro`"):
        figures.main()


def test_the_same_tables_are_the_same_bytes(repository):
    evaluate("base")
    first = (tables.TABLES / "base.json").read_bytes()
    evaluate("base")
    assert (tables.TABLES / "base.json").read_bytes() == first
    assert set(read_json(tables.TABLES / "base.json")) == {"called", "protocol", "measures", *figures.COLUMNS}
    assert len(first.splitlines()) < 60  # a line per row: what changes between two commits can be read


def test_the_page_that_needs_no_network_loads_nothing(repository):
    evaluate("base")
    figures.main()
    subprocess.run(
        [sys.executable, "-m", "tools.page"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )
    page = (repository / "dvc_plots/index.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|link)[^>]+(src|href)=", page)
    assert "window.vegaEmbed=" in page
    assert page.count("vegaEmbed('#") == len(figures.COLUMNS)
