"""The model's own answers: seeded, kept batch by batch, judged, paired, gated, and learned from."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch
from pyarrow import parquet

from stages import sample
from stages.model import generation, modeling
from stages.model.generation import Sampling, Wanted
from stages.settings.errors import Problem
from stages.settings.reader import read
from stages.text.prompts import TEMPLATES
from tests.conftest import Workspace
from tests.test_scoring import KINDS
from tests.test_scoring import model as random_model

SETTINGS = Sampling(count=3, temperature=1.0, top_p=0.95, limit=12, seed=7)
PROMPTS = [TEMPLATES["chatml"].render([{"role": "user", "content": f"ما جمع كلمة {w}؟"}]) for w in
    ("كتاب", "قلم", "باب", "مدرسة كبيرة جدا", "علم")]  # fmt: skip


@pytest.fixture
def nano(inside):
    params = read()
    model = modeling.load_base(params.chosen_model.weights).eval()
    return model, modeling.load_tokenizer(params.prompt)


def asked(nano, folder, settings=SETTINGS, prompts=PROMPTS):
    model, tokenizer = nano
    wanted, stops = Wanted(prompts, tokenizer, settings, folder), [tokenizer.eos_token_id]
    generation.sample(model, wanted, stops, "test")
    return wanted.answers(stops)


def test_an_answer_follows_from_its_prompt_and_number_whatever_else_is_asked(nano, tmp_path, monkeypatch):
    whole = asked(nano, tmp_path / "whole")
    assert [len(own) for own in whole] == [3] * 5
    assert len({answer.text for own in whole for answer in own}) > 3
    assert asked(nano, tmp_path / "some", prompts=PROMPTS[::-2]) == whole[::-2]
    fewer = Sampling(2, 1.0, 0.95, 12, seed=7)
    assert asked(nano, tmp_path / "fewer", fewer) == [own[:2] for own in whole]
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    monkeypatch.setattr(generation, "TOKENS", 120)
    assert asked(nano, tmp_path / "batches") == whole
    assert len(list((tmp_path / "batches").iterdir())) > 3
    assert torch.equal(torch.random.get_rng_state(), state)
    assert asked(nano, tmp_path / "other", Sampling(3, 1.0, 0.95, 12, seed=8)) != whole


def test_what_was_answered_before_a_kill_is_not_asked_again(nano, tmp_path, monkeypatch):
    monkeypatch.setattr(generation, "TOKENS", 120)
    whole = asked(nano, tmp_path / "whole")
    count = len(list((tmp_path / "whole").iterdir()))
    continued, calls = generation.continued, Counter()

    def killed(*given):
        calls["asked"] += 1
        if calls["asked"] == 2:
            raise KeyboardInterrupt
        return continued(*given)

    monkeypatch.setattr(generation, "continued", killed)
    with pytest.raises(KeyboardInterrupt):
        asked(nano, tmp_path / "cut")
    assert len(list((tmp_path / "cut").iterdir())) == 1
    assert asked(nano, tmp_path / "cut") == whole
    assert calls["asked"] == 2 + count - 1


def test_tokens_are_drawn_from_the_most_probable_that_hold_top_p():
    probabilities = torch.tensor([0.15, 0.5, 0.05, 0.3])
    chances = (torch.arange(10_000) + 0.5) / 10_000
    for top_p, kept in ((1.0, [0, 1, 2, 3]), (0.9, [0, 1, 3]), (0.5, [1])):
        tokens = generation.drawn(
            probabilities.log().expand(10_000, 4), chances, Sampling(1, 1.0, top_p, 1, 0)
        )
        shares = torch.bincount(tokens, minlength=4) / 10_000
        wanted = torch.zeros(4).index_copy(0, torch.tensor(kept), probabilities[kept])
        torch.testing.assert_close(shares, wanted / wanted.sum(), atol=2e-4, rtol=0)
    cold = generation.drawn(probabilities.log()[None], torch.tensor([0.999]), Sampling(1, 1e-30, 1.0, 1, 0))
    assert cold.tolist() == [1]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_end_leave_the_others_as_they_are(kind):
    """Beside a model that reads each text whole, without a cache; of Gemma 3 beyond its sliding window."""
    gemma = {"sliding_window": 8, "num_hidden_layers": 7}
    own = random_model(kind, **(gemma if kind == "gemma3_text" else {}))
    numbers, stop, ends = torch.Generator().manual_seed(3), 1, [20, 1, 7, 24, 7, 12]
    rows = [torch.randint(5, 4096, (n,), generator=numbers).tolist() for n in (30, 3, 17, 9, 25, 1)]

    def choose(logits: torch.Tensor, places: list[int], step: int) -> torch.Tensor:
        """Another rank at every step: a random model likes to repeat itself."""
        found = logits.topk(9).indices[:, 4 * step % 9]
        return torch.where(torch.tensor([ends[place] > step for place in places]), found, stop)

    found = generation.continued(own, rows, list(range(6)), [stop], 20, choose)
    assert [len(tokens) for tokens in found] == [20, 2, 8, 20, 8, 13]
    for place, (row, tokens) in enumerate(zip(rows, found)):
        for step, token in enumerate(tokens):
            with torch.inference_mode():
                logits = own(torch.tensor([row + tokens[:step]]), use_cache=False).logits[:, -1]
            assert token == choose(logits, [place], step)


def test_a_limit_that_the_data_exceeds_is_named():
    rows = [[0, 3, 10, 14], [5, 25]]  # answers of 4 and 20 tokens
    assert generation.cut("evaluate.max_new_tokens", 16, [True, False, False], rows) == (
        "2 of 3 answers were cut at 16 tokens, and 1 of 2 in the data are longer: raise "
        "evaluate.max_new_tokens; 20 would hold all of these"
    )
    assert generation.cut("evaluate.max_new_tokens", 20, [False], rows) == ""


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
    settings = read().sample.model_copy(update={"margin": 0.1})
    pairs, lost = sample.paired(rows, settings, "sft")
    assert [(one["chosen"][0]["content"], one["rejected"][0]["content"], one["id"]) for one in pairs] == [
        ("2", "4", "sampled-sft:0")
    ]
    assert pairs[0]["prompt"] == [{"role": "user", "content": "أ"}]
    assert lost == {
        "prompts of which no answer is better than another": 2,
        "prompts with fewer than two answers with a verdict": 1,
    }


def test_an_answer_alone_is_good_or_bad():
    rows = [row("أ", str(number), score) for number, score in enumerate((1.0, 0.99, None, 1.0))]
    rows += [row("أ", "0", 1.0), row("ب", "0", 1.0)]  # said again, and said to another prompt
    votes, lost = sample.voted(rows, read().sample, "sft")
    assert [(len(one["chosen"]), len(one["rejected"]), one["id"]) for one in votes] == [
        (1, 0, "sampled-sft:0"), (0, 1, "sampled-sft:1"), (1, 0, "sampled-sft:2"), (1, 0, "sampled-sft:3")
    ]  # fmt: skip
    assert votes[1]["rejected"] == [{"role": "assistant", "content": "1"}]
    assert lost == {"answers without a verdict": 1, "answers given before to the same prompt": 1}


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
        ({"evaluate.judge": {"kind": "people"}}, "judge.kind is 'people', who score sampled answers"),
        ({"sample.engine": "vllm", "models.nano.weights.quantization": "nf4"}, "nano is held in 4 bit"),
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
def test_people_can_score_what_was_sampled_and_nothing_is_asked_again(sampled, tmp_path):
    project = sampled.copy(tmp_path / "project")
    asked = [json.loads(line) for line in project.run(
        sys.executable, "-m", "tools.answers", "sft", "--sampled").stdout.splitlines()]  # fmt: skip
    answers = table(sampled, "data/raw/sampled-sft/answers.parquet")
    assert {(one["question"], one["answer"]) for one in asked} == {
        (one["question"], one["answer"]) for one in answers if one["score"] is not None
    }
    assert len(asked) == len({(one["question"], one["answer"]) for one in asked})
    # these people like short answers
    scored = [one | {"score": -len(one["answer"])} for one in asked[:-1]] + asked[-1:]
    (project.path / "data/feedback/verdicts.jsonl").write_text(
        "\n".join(json.dumps(one, ensure_ascii=False) for one in scored), encoding="utf-8"
    )
    project.set({"sample.judge": {"kind": "people"}})
    said = project.run(sys.executable, "-m", "stages.sample", "sft").stdout
    assert "240 of 240 answers were given before" in said
    assert f"{len(asked) - 1:,} answers with a score of people" in said
    for pair in table(project, "data/raw/sampled-sft/sampled.parquet"):
        assert len(pair["chosen"][0]["content"]) < len(pair["rejected"][0]["content"])
    project.set({"sample.judge": {"kind": "reference"}, "sample.keep": "votes"})
    project.run(sys.executable, "-m", "stages.sample", "sft")
    votes = table(project, "data/raw/sampled-sft/sampled.parquet")
    scores = {(one["prompt"], one["answer"]): one["score"] for one in answers if one["score"] is not None}
    assert [bool(one["chosen"]) for one in votes] == [score >= 1 for score in scores.values()]
    assert all(bool(one["chosen"]) != bool(one["rejected"]) for one in votes)
    project.run(sys.executable, "-m", "stages.format", "sampled-sft")
    assert 0 < len(table(project, "data/formatted/sampled-sft/train.parquet")) <= len(votes)


@pytest.mark.slow
def test_the_preference_stage_learns_from_them(sampled):
    """In its provenance, and a run without them is another one."""
    sampled.run(sys.executable, "-m", "stages.dpo")
    provenance = json.loads((sampled.path / "models/dpo/provenance.json").read_text(encoding="utf-8"))
    assert len(provenance["sampled_sha256"]) == 64
    # and again: the same pairs, whatever is on disk
    before = (sampled.path / "data/raw/sampled-sft/sampled.parquet").read_bytes()
    said = sampled.run(sys.executable, "-m", "stages.sample", "sft").stdout
    assert "240 of 240 answers were given before" in said
    assert (sampled.path / "data/raw/sampled-sft/sampled.parquet").read_bytes() == before


def answered(project: Workspace) -> dict[str, int]:
    """The files of answers that are kept so far, with their times."""
    folders = (project.path / ".cache/sample").glob("*/*.json")
    return {str(path): path.stat().st_mtime_ns for path in folders}


@pytest.mark.slow
def test_a_run_killed_twice_ends_in_the_same_bytes_and_asks_nothing_again(sampled, tmp_path):
    project, rng = sampled.copy(tmp_path / "project"), random.Random(5)
    project.environment["DVC_ROOT"] = str(project.path)
    project.set({"sample.max_new_tokens": 256, "sample.prompts": 100})
    command = [sys.executable, "-m", "stages.sample", "sft"]
    project.run(*command)
    results = [
        project.path / "data/raw/sampled-sft" / name for name in ("sampled.parquet", "answers.parquet")
    ]
    whole, total = [path.read_bytes() for path in results], len(answered(project))
    assert total > 4
    shutil.rmtree(project.path / ".cache/sample")
    shutil.rmtree(project.path / "data/raw/sampled-sft")
    known = {}
    for _ in range(2):
        process = subprocess.Popen(command, cwd=project.path, env=os.environ | project.environment)
        while process.poll() is None and len(answered(project)) == len(known):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.wait()
        found = answered(project)
        assert len(known) < len(found) < total
        assert known.items() <= found.items()
        known = found
    said = project.run(*command).stdout
    assert re.search(r"sample: sft: \d+ of 400 answers were given before", said)
    assert known.items() <= answered(project).items()
    assert [path.read_bytes() for path in results] == whole
