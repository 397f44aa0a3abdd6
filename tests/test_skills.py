"""The built-in data: nothing held out is ever trained on, and it is the data that the committed base was made
from.
"""

import hashlib
import json
import random
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from stages.builtin import pretrain, skills
from stages.text.prompts import END_OF_TEXT

ROOT = Path(__file__).parents[1]


def test_no_held_out_item_is_in_training_data():
    instructions = list(skills.instructions(3000))
    preferences = list(skills.preferences(3000))
    held_out = {row["id"].split(":", 1)[1] for row in skills.benchmark(30) if row["split"] != "dev"}
    trained = {row["id"].split(":", 1)[1] for row in instructions + preferences if row["split"] == "train"}
    validation = {
        row["id"].split(":", 1)[1] for row in instructions + preferences if row["split"] == "validation"
    }
    test = {row["id"].split(":", 1)[1] for row in skills.benchmark(30) if row["split"] == "test"}
    assert not held_out & trained
    assert not validation & trained
    assert not test & validation


def test_no_held_out_answer_is_in_the_pretraining_corpus(monkeypatch):
    drawn = []
    original = skills.draw
    monkeypatch.setattr(
        skills, "draw", lambda family, split, rng: drawn.append(item := original(family, split, rng)) or item
    )
    documents = "\n".join(skills.corpus(500, END_OF_TEXT, lambda user, assistant: f"{user}\n{assistant}"))
    assert {skills.split_of(item.key) for item in drawn} == {"train"}
    questions = {row["question"] for row in skills.benchmark(20) if row["split"] in ("validation", "test")}
    assert not [question for question in questions if f"{question}\n" in documents]


def test_an_item_asked_the_other_way_round_is_in_the_same_split():
    rng = random.Random(0)
    for item in (skills.neighbour(rng) for _ in range(50)):
        n = int(item.slots["n"])
        assert item.key == f"neighbour:{min(n, int(item.answer))}"
    assert skills.number_to_words(random.Random(3)).key == skills.words_to_number(random.Random(3)).key


@pytest.mark.parametrize("family", skills.FAMILIES)
def test_every_family_makes_good_items(family):
    rng = random.Random(1)
    for item in skills.distinct(family, "train", 100, rng):
        assert item.near_misses, item
        assert item.answer not in item.near_misses
        assert item.answer in item.statement(rng)
        assert "{" not in item.question(rng)
    assert len(skills.distinct(family, "test", 60, rng)) == 60


def test_answers_have_two_good_forms():
    assert skills.content(skills.sentence("خمسة عشر")) == skills.content("خمسة عشر") == "خمسة عشر"
    assert skills.is_sentence("الجواب هو خمسة عشر.")
    assert not skills.is_sentence("خمسة عشر")
    kinds = Counter(row["source"] for row in skills.preferences(1000))
    assert 0.2 < kinds["skills/near_miss"] / 1000 < 0.4
    assert all(skills.is_sentence(row["chosen"][0]["content"]) for row in skills.preferences(100))


def test_the_committed_base_was_pretrained_on_this_corpus():
    made_from = json.loads((ROOT / "models/nano/provenance.json").read_text(encoding="utf-8"))
    nano = pretrain.Nano()
    assert made_from["nano"] == asdict(nano)
    assert (
        made_from["weights_sha256"]
        == hashlib.sha256((ROOT / "models/nano/model.safetensors").read_bytes()).hexdigest()
    )
    assert made_from["corpus_sha256"] == pretrain.digest(list(pretrain.corpus(nano.documents))), (
        "run `python -m stages.builtin.pretrain`"
    )
