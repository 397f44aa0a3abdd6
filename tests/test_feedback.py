"""Votes of people, from the arena's file to a trained policy: pairs, and single votes beside them."""

import json
from pathlib import Path

import pytest
from pyarrow import parquet

from stages import check, evaluate, fetch
from stages import format as formatting
from stages.builtin import skills
from stages.preference import rows as rows_of
from stages.preference import trainers
from stages.settings.errors import Problem
from stages.settings.files import read_json
from stages.settings.reader import read
from stages.training import run as training
from tests.conftest import ROOT, Workspace

VOTES = Path("data/feedback/preferences.jsonl")
SFT = Path("models/sft")


def vote(row: dict, kind: str, swapped: bool = False) -> dict:
    """A line as the arena writes it; `kind` is first where the chosen answer was shown first."""
    answers = [{"checkpoint": name, "weights_sha256": "0", "answer": row[answer][0]["content"]}
               for name, answer in (("dpo", "chosen"), ("sft", "rejected"))]  # fmt: skip
    return {"id": "0", "time": "2026-01-31T12:00:00+00:00", "prompt": row["prompt"],
        "answers": answers[:: -1 if swapped else 1],
            "vote": kind, "temperature": 0.7}  # fmt: skip


def write_votes(votes: list[dict], torn: str = "") -> None:
    VOTES.write_text(
        "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in votes) + torn, encoding="utf-8"
    )


def changed(params, **preference):
    own = params.chosen_model.preference.model_copy(update=preference)
    return params.model_copy(
        update={"models": {params.model: params.chosen_model.model_copy(update={"preference": own})}}
    )


@pytest.fixture(scope="module")
def voted(workspace: Workspace, tmp_path_factory) -> Workspace:
    """People have voted 80 times, and some of what they said cannot be used."""
    project = workspace.copy(tmp_path_factory.mktemp("voted") / "project")
    project.set(
        {
            "allow_builtin": True,
            "mixtures.demo.preferences": {"feedback": "all"},
            "format.validation": 0.15,
            "evaluate.health_prompts": 2,
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.path)
        rows = [row for row in skills.preferences(400) if row["source"] != "skills/near_miss"]
        rows = list({row["prompt"][0]["content"]: row for row in rows}.values())[:82]
        votes = [
            vote(row, ["first", "second", "tie", "both_bad"][i % 4], i % 4 == 1)
            for i, row in enumerate(rows[:80])
        ]
        argued = [
            vote(rows[80], "first"),
            vote(rows[80], "second"),
            vote(rows[0], "second"),
            vote(rows[0], "first"),
        ]
        alike = [vote(rows[81] | {"rejected": rows[81]["chosen"]}, "first")]
        write_votes(votes + argued + alike, torn='{"id": "0", "prompt": [{"ro')
        fetch.main("preferences")
        formatting.main("preferences")
    return project


@pytest.fixture
def inside(voted, monkeypatch):
    monkeypatch.chdir(voted.path)


def test_every_vote_is_used_or_counted(inside):
    """Of two votes against one the majority stands, once; where as many say the opposite, neither."""
    report = read_json(Path("data/reports/preferences.json"))
    assert report["sources"]["feedback"]["published"] == 86
    assert report["dropped"] == {"chosen_is_rejected": 1, "contradiction": 3, "duplicate": 1, "malformed": 1}
    assert report["rows"] == 86 + 40  # a tie, and "both bad", are two single votes
    kept = [
        row
        for split in ("train", "validation")
        for row in parquet.read_table(f"{rows_of.DATA.parent}/{split}.parquet").to_pylist()
    ]
    kinds = [(bool(row["chosen"]), bool(row["rejected"])) for row in kept]
    assert [kinds.count(kind) for kind in ((True, True), (True, False), (False, True))] == [40, 40, 40]
    assert {row["id"] for row in kept} >= {"feedback:0", "feedback:1", "feedback:2.1", "feedback:2.2"}


def test_kto_learns_from_pairs_and_single_votes(inside, capsys):
    params = changed(read(), learning_rate=2e-4)
    trainer = trainers.build(params, "kto", SFT)
    rows = parquet.read_table(rows_of.DATA).to_pylist()
    good, bad = (sum(bool(row[answer]) for row in rows) for answer in ("chosen", "rejected"))
    assert len(trainer.train_dataset) == (good + bad) // 32 * 32
    assert {True, False} == set(trainer.train_dataset["label"])
    least, most = (round(bound, 1) for bound in rows_of.BALANCE)
    balanced = least <= round(good / bad, 1) <= most
    assert (f"{good} good and {bad} bad answers: methods.kto." in capsys.readouterr().out) != balanced
    assert trainer.args.per_device_train_batch_size == 32  # the answers of 16 pairs
    facts = training.train(trainer, "test-votes", params, params.preference, {"test": "votes", "chain": []})
    assert facts["start_loss"] == pytest.approx(0.5, abs=1e-3)
    assert facts["final_margin"] > 0 and facts["held_out_margin"] > 0


def test_methods_of_pairs_leave_single_votes_out_and_say_so(inside, capsys):
    params, rows = read(), parquet.read_table(rows_of.DATA).to_pylist()
    pairs = [row for row in rows if row["chosen"] and row["rejected"]]
    trainer = trainers.build(params, "dpo", SFT)
    assert set(map(tuple, trainer.train_dataset["prompt_ids"])) <= {tuple(row["prompt_ids"]) for row in pairs}
    assert len(trainer.train_dataset) == len(pairs) // 16 * 16
    said = (
        f"learns from pairs alone, and {len(rows) - len(pairs)} of {len(rows)} preferences are single votes"
    )
    assert f"note: dpo {said}: they are left out" in capsys.readouterr().out
    with pytest.raises(
        Problem,
        match=f"ipo {said}: {len(pairs)} pairs do not fill a step of 64; .* learn from both: -S method=kto",
    ):
        trainers.build(changed(params, batch_size=64), "ipo", SFT)


def test_held_out_pairs_are_scored_and_held_out_single_votes_are_not(inside):
    evaluate.main("sft")
    held_out = parquet.read_table("data/formatted/preferences/validation.parquet").to_pylist()
    scored = parquet.read_table("data/predictions/sft.parquet", filters=[("benchmark", "=", "preference")])[
        "id"
    ].to_pylist()
    assert scored == [row["id"] for row in held_out if row["chosen"] and row["rejected"]]
    assert 0 < len(scored) < len(held_out)


def test_without_votes_it_is_said_how_to_get_some(inside):
    VOTES.rename("votes")
    line = r"preferences.jsonl is not there: vote in `python -m tools.chat --web` first"
    with pytest.raises(SystemExit, match=line):
        check.main("preferences")
    Path("votes").rename(VOTES)
    check.main("preferences")


@pytest.mark.parametrize(
    ("good", "bad", "said"),
    [
        (100, 100, ""),
        (130, 100, ""),
        (
            50,
            100,
            "50 good and 100 bad answers: methods.kto.desirable_weight from 2.00 to 2.67 would balance them",
        ),
        (
            200,
            100,
            "200 good and 100 bad answers: methods.kto.undesirable_weight from 1.50 to 2.00 would balance "
            "them",
        ),
    ],
)
def test_the_weights_that_balance_good_and_bad_answers_are_named(capsys, good, bad, said):
    own = read(ROOT / "params.yaml").methods["kto"]
    rows_of.check_balance(good, bad, "kto", own)
    assert capsys.readouterr().out == (f"note: {said}\n" if said else "")
    if said:
        name, bound = said.split("methods.kto.")[1].split()[0], float(said.split(" from ")[1].split()[0])
        rows_of.check_balance(good, bad, "kto", own.model_copy(update={name: bound}))
        assert not capsys.readouterr().out  # it does
    with pytest.raises(Problem, match=f"{good} good and 0 bad answers, and kto learns from both kinds"):
        rows_of.check_balance(good, 0, "kto", own)


def test_a_step_without_a_margin_leaves_a_gap_in_the_curve(tmp_path):
    """As one of good answers alone, or of bad ones."""
    history = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4, "rewards/margins": 0.1}]
    training.write_curves(tmp_path / "curve.tsv", history)
    assert (tmp_path / "curve.tsv").read_text() == "step\tloss\tmargin\n1\t0.5\t\n2\t0.4\t0.1\n"
