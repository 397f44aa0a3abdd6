"""Blind comparison: two checkpoints answer, a person says which answer is better →
data/feedback/preferences.jsonl
"""

import json
import os
import secrets
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

from filelock import FileLock

from stages.settings import files
from stages.text.prompts import Message
from tools.chat.endpoint import Answering
from tools.chat.models import Models, Refusal, Reply, Sampling
from tools.votes import VOTES

KEPT = 256  # battles in memory, the latest
SIDES = ("first", "second")
TURN = 8  # tokens of each answer at a time: to switch adapters takes as long as a token or two


@dataclass
class Duel:
    """Two answers to one prompt, in the order in which they are shown."""

    prompt: list[Message]
    replies: tuple[Reply, Reply]
    voted: bool = False

    @classmethod
    def of(cls, models: Models, names: list[str], messages: list[Message], sampling: Sampling) -> "Duel":
        if names[0] == names[1]:
            raise Refusal("a comparison needs two different checkpoints", "same_checkpoint")
        shuffled = secrets.SystemRandom().sample(names, 2)
        prompt = models.conversation(messages)
        return cls(prompt, tuple(models.reply(name, messages, sampling) for name in shuffled))

    @property
    def names(self) -> dict[str, str]:
        return dict(zip(SIDES, (reply.name for reply in self.replies)))


class Arena:
    """The battles that can be voted on, by id; oldest first."""

    def __init__(self):
        self.battles: dict[str, Duel] = {}

    def events(self, duel: Duel) -> Iterator[dict]:
        """Both answers in step, as the two choices of a completion, so that neither's pace tells whose it is;
        then the battle's id.

        Where there is nothing to choose between, the names at once and no id.
        """
        answering = Answering("arena")
        running = [iter(reply) for reply in duel.replies]
        while any(turn := ["".join(islice(pieces, TURN)) for pieces in running]):
            for index, text in enumerate(turn):
                if text:
                    yield answering.chunk({"content": text}, index)
        first, second = (reply.text.strip() for reply in duel.replies)
        if first == second or not (first and second):
            why = "equal" if first == second else "empty"
            yield answering.object("battle", [], undecidable=why, names=duel.names)
            return
        yield answering.object("battle", [], battle=self.add(duel))

    def add(self, duel: Duel) -> str:
        name = uuid.uuid4().hex
        self.battles[name] = duel
        for oldest in list(self.battles)[:-KEPT]:
            del self.battles[oldest]
        return name

    def vote(self, battle: str, vote: str) -> dict:
        """Store a vote, and tell the names of the checkpoints."""
        duel = self.battles.get(battle)
        if duel is None:
            raise Refusal(
                "this comparison is not known: it is too old, or the server was started anew since",
                "unknown_battle",
                404,
            )
        if duel.voted:
            raise Refusal("this comparison has its vote already", "voted_already", 409)
        duel.voted = True
        try:
            append(record(battle, duel, vote))
        except OSError as error:
            duel.voted = False
            raise Refusal(
                f"the vote could not be written to {VOTES}: {error.strerror}", "vote_not_written", 500
            ) from None
        return duel.names


def record(battle: str, duel: Duel, vote: str) -> dict:
    answers = [
        {
            "checkpoint": reply.name,
            "weights_sha256": reply.models.weights_sha256[reply.name],
            "answer": reply.text,
        }
        for reply in duel.replies
    ]
    return {
        "id": battle,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "prompt": duel.prompt,
        "answers": answers,
        "vote": vote,
        "temperature": duel.replies[0].sampling.temperature,
    }


def append(vote: dict) -> None:
    """Add a line to the file by replacing it whole: no reader sees half a line, and what a cache links to the
    old file stays.
    """
    lock = files.cache("feedback.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock), files.replace_file(VOTES) as temporary, temporary.open("wb") as out:
        before = VOTES.read_bytes() if VOTES.exists() else b""
        out.write(before if before.endswith(b"\n") or not before else before + b"\n")
        out.write(json.dumps(vote, ensure_ascii=False).encode() + b"\n")
        out.flush()
        os.fsync(out.fileno())
