"""The model's own answers: seeded, kept batch by batch, judged, paired, gated, and learned from."""

import json
import sys
from collections import Counter

import pytest
import torch
from pyarrow import parquet

from stages import sample
from stages.model import generation, modeling
from stages.model.generation import Sampling
from stages.settings.errors import Problem
from stages.settings.reader import read
from stages.text.prompts import TEMPLATES
from tests.conftest import Workspace

SETTINGS = Sampling(count=3, temperature=1.0, top_p=0.95, limit=12, seed=7)
PROMPTS = [TEMPLATES["chatml"].render([{"role": "user", "content": f"ما جمع كلمة {w}؟"}]) for w in
    ("كتاب", "قلم", "باب", "مدرسة كبيرة جدا", "علم")]  # fmt: skip


@pytest.fixture
def nano(inside):
    params = read()
    model = modeling.load_base(params.chosen_model.weights).eval()
    return model, modeling.load_tokenizer(params.prompt)


def asked(nano, folder, settings=SETTINGS):
    model, tokenizer = nano
    stops = [tokenizer.eos_token_id]
    return generation.sample(model, tokenizer, PROMPTS, stops, settings, "test", folder)


def test_answers_follow_from_the_seed_whatever_was_asked_before(nano, tmp_path, monkeypatch):
    monkeypatch.setattr(generation, "TOKENS", 180)  # two prompts in a batch or so
    whole = asked(nano, tmp_path / "whole")
    assert [len(own) for own in whole] == [3] * 5
    assert len({answer.text for own in whole for answer in own}) > 3
    count = len(list((tmp_path / "whole").iterdir()))
    assert count > 1
    torch.manual_seed(99)
    state, drawn, calls = torch.random.get_rng_state(), generation.drawn, Counter()

    def killed(*given):
        calls["asked"] += 1
        if calls["asked"] == 2:
            raise KeyboardInterrupt
        return drawn(*given)

    monkeypatch.setattr(generation, "drawn", killed)
    with pytest.raises(KeyboardInterrupt):
        asked(nano, tmp_path / "cut")
    assert len(list((tmp_path / "cut").iterdir())) == 1
    assert asked(nano, tmp_path / "cut") == whole
    assert calls["asked"] == 2 + count - 1  # the finished batch was not asked again
    assert torch.equal(torch.random.get_rng_state(), state)
    monkeypatch.setattr(generation, "drawn", drawn)
    assert asked(nano, tmp_path / "other", Sampling(3, 1.0, 0.95, 12, seed=8)) != whole


def row(prompt: str, answer: str, score: float | None) -> dict:
    talk = [{"role": "user", "content": prompt}]
    return {"prompt_id": prompt, "answer": answer, "score": score, "messages": talk, "task": "cidar"}


def test_the_best_answer_stands_against_the_worst():
    rows = [
        row(prompt, str(number), score)
        for prompt, scores in (
            ("أ", (0.2, 0.9, 0.9, 0.1)), ("ب", (0.5, 0.5)), ("ج", (None, 1.0)), ("د", (0.5, 0.55))
        )
        for number, score in enumerate(scores, 1)
    ]  # fmt: skip
    pairs, lost = sample.paired(rows, 0.1, "sft")
    assert [(one["chosen"][0]["content"], one["rejected"][0]["content"], one["id"]) for one in pairs] == [
        ("2", "4", "sampled-sft:0")
    ]
    assert pairs[0]["prompt"] == [{"role": "user", "content": "أ"}]
    assert lost == {"no answer is better than another": 2, "fewer than two answers with a verdict": 1}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sample.prompts": 5}, "mixtures.demo.preferences has no sampled: add `sampled: all`"),
        ({"mixtures.demo.preferences": {"sampled": "all"}}, "has sampled, but sample.prompts is 0"),
        ({"sample.prompts": 5, "mixtures.demo.preferences": {"sampled": "all"},
            "sample.judge": {"kind": "none"}}, "sample.judge.kind is 'none'"),
        ({"sample.prompts": 5, "mixtures.demo.preferences": {"sampled": "all"}, "sample.dataset": "cidar"},
            "sample.dataset is 'cidar': it must be one of skills"),
        ({"sample.answers": 1}, "sample.answers is 1"),
        ({"sample.prompts": 5, "mixtures.demo.preferences": {"sampled": "all"}, "sample.refine": "dpo"},
            "sample.refine is 'dpo', but refine is"),
    ],
)  # fmt: skip
def test_settings_that_make_no_pairs_are_refused(inside, tmp_path, monkeypatch, changes, said):
    copy = inside.copy(tmp_path / "project")
    monkeypatch.chdir(copy.path)
    copy.set(changes)
    with pytest.raises(Problem, match=said):
        read()


def test_without_prompts_nothing_is_asked(inside):
    inside.run(sys.executable, "-m", "stages.sample", "sft")
    assert [path.name for path in (inside.path / "data/raw/sampled-sft").iterdir()] == ["sources.json"]
    inside.run(sys.executable, "-m", "stages.format", "sampled-sft")
    gated = inside.path / "data/formatted/sampled-sft/train.parquet"
    assert parquet.read_metadata(gated).num_rows == 0


@pytest.fixture(scope="module")
def sampled(workspace, tmp_path_factory) -> Workspace:
    project = workspace.copy(tmp_path_factory.mktemp("sampled") / "project")
    project.environment["DVC_ROOT"] = str(project.path)
    project.set({"sample.prompts": 60, "sample.max_new_tokens": 24, "sample.temperature": 1.0,
        "mixtures.demo.preferences": {"skills": 220, "sampled": "all"}})  # fmt: skip
    project.said = project.run(sys.executable, "-m", "stages.sample", "sft").stdout
    project.run(sys.executable, "-m", "stages.format", "sampled-sft")
    return project


def table(project: Workspace, name: str) -> list[dict]:
    return parquet.read_table(project.path / name).to_pylist()


def test_pairs_are_of_the_models_own_answers_to_training_prompts(sampled):
    pairs, answers = (
        table(sampled, f"data/raw/sampled-sft/{name}.parquet") for name in ("sampled", "answers")
    )
    assert len(answers) == 240
    assert 5 < len(pairs) <= 60
    scores = {(one["prompt_id"], one["answer"]): one["score"] for one in answers}
    prompts = {one["prompt"]: one["prompt_id"] for one in answers}
    template = TEMPLATES["chatml"]
    for pair in pairs:
        prompt = prompts[template.render(pair["prompt"])]
        good, bad = (scores[prompt, pair[kind][0]["content"]] for kind in ("chosen", "rejected"))
        assert good > bad
    assert all(one["score"] is None for one in answers if not one["stopped"])
    trained = {one["prompt"] for one in table(sampled, "data/formatted/instructions/train.parquet")}
    held_out = {one["prompt"] for role in ("instructions", "preferences")
        for one in table(sampled, f"data/formatted/{role}/validation.parquet")}  # fmt: skip
    assert set(prompts) <= trained - held_out
    facts = json.loads((sampled.path / "data/raw/sampled-sft/sources.json").read_text(encoding="utf-8"))[
        "sampled"
    ]
    assert facts["judge"] == {"kind": "reference"}
    assert facts["engine"].startswith("transformers ")
    assert (facts["published"], facts["taken"]) == (60, len(pairs))
    assert f"60 prompts, 240 answers, {len(pairs)} pairs" in sampled.said
    gated = table(sampled, "data/formatted/sampled-sft/train.parquet")
    assert 0 < len(gated) <= len(pairs)
    assert not table(sampled, "data/formatted/sampled-sft/validation.parquet")


@pytest.mark.slow
def test_the_preference_stage_learns_from_them(sampled):
    """In its provenance, and a run without them is another one."""
    sampled.run(sys.executable, "-m", "stages.dpo")
    provenance = json.loads((sampled.path / "models/dpo/provenance.json").read_text(encoding="utf-8"))
    assert len(provenance["sampled_sha256"]) == 64
    # and again: the same pairs, whatever is on disk
    before = (sampled.path / "data/raw/sampled-sft/sampled.parquet").read_bytes()
    sampled.run(sys.executable, "-m", "stages.sample", "sft")
    assert (sampled.path / "data/raw/sampled-sft/sampled.parquet").read_bytes() == before
    assert not list((sampled.path / ".cache/sample").iterdir())
