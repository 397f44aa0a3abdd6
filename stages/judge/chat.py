"""A model behind an OpenAI-compatible endpoint judges: vLLM, llama.cpp, a hosted one.

Every verdict stands in a file named by the hash of its request (model, messages, settings), so a run again
asks nothing that was answered before, also after a kill. The key comes from the environment alone
(JUDGE_API_KEY) and stands in no file and no message. What fails in passing (timeouts, 408, 429, 5xx, an
answer cut in the middle) is asked again, TRIES times in all, after waits that double up to LONGEST_WAIT
seconds, or that the server asks for; what will not pass stops the run, which goes on from there later.
"""

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from tqdm import tqdm

from stages.judge.answered import Answered
from stages.settings.errors import Problem
from stages.settings.files import cache, read_json, write_json
from stages.settings.params import Judge
from stages.text import judging
from stages.text.prompts import Message

KEY = "JUDGE_API_KEY"
TRIES, FIRST_WAIT, LONGEST_WAIT = 6, 1.0, 60.0
TIMEOUT = 120.0  # seconds of one try
PARALLEL = 8  # requests at a time
PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}


class Passing(Exception):
    """What may go well the next time; `wait`: seconds that the server asks for."""

    def __init__(self, why: str, wait: float | None = None):
        super().__init__(why)
        self.wait = wait


class ChatJudge:
    """`counts` tells how many verdicts were asked for, found on disk and invalid, and what they cost."""

    def __init__(self, key: str, settings: Judge, sleep: Callable[[float], None] = time.sleep):
        self.key, self.settings, self.sleep = key, settings, sleep
        self.url = settings.base_url.rstrip("/") + "/chat/completions"
        self.folder = cache("verdicts")
        self.counts: Counter[str] = Counter()
        self.counting = Lock()

    @property
    def record(self) -> dict:
        return {"kind": "chat", "model": self.settings.model, "max_tokens": self.settings.max_tokens}

    def scores(self, answers: list[Answered], title: str) -> list[float | None]:
        """0..1 of each answer; None where the judge gave no verdict."""
        asked = [
            judging.score_messages(one.question, one.answer, one.references[0] if one.references else None)
            for one in answers
        ]
        return self.verdicts(asked, judging.read_score, title)

    def preferences(self, pairs: list[tuple[str, str, str]], title: str) -> list[float | None]:
        """Of (question, first, second) whether the first is better: 1, 0, or ½ for a tie.

        Each pair is asked in both orders; a judge that goes by the order has seen no difference, a tie.
        None where one of the two verdicts is missing.
        """
        asked = [judging.pair_messages(question, *two) for question, *two in pairs]
        turned = [judging.pair_messages(question, *two[::-1]) for question, *two in pairs]
        found = self.verdicts(asked + turned, judging.read_choice, title)
        return [preferred(*both) for both in zip(found[: len(pairs)], found[len(pairs) :])]

    def verdicts(self, asked: list[list[Message]], read: Callable, title: str) -> list:
        """What `read` makes of each answer of the judge. Raises Problem where none of them is a verdict."""
        import httpx2

        bodies = [self.body(messages) for messages in asked]
        distinct = {self.path(body): body for body in bodies}
        key = os.environ.get(KEY, "")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with (
            httpx2.Client(timeout=TIMEOUT, headers=headers) as client,
            ThreadPoolExecutor(PARALLEL) as pool,
            tqdm(
                total=len(distinct), desc=f"{title}: judged", unit="answer", leave=False, dynamic_ncols=True,
                disable=None,
            ) as bar,
        ):  # fmt: skip
            tasks = {path: pool.submit(self.verdict, client, path, body) for path, body in distinct.items()}
            said = {}
            try:
                for path, task in tasks.items():
                    said[path] = task.result()
                    bar.update()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        found = [None if said[path] is None else read(said[path]) for path in map(self.path, bodies)]
        invalid = sum(one is None for one in found)
        self.count(invalid=invalid)
        if found and invalid == len(found):
            first = next(iter(said.values()))
            raise Problem(
                f"{self.key}: none of {invalid:,} answers of {self.settings.model} is a verdict; the first "
                f"is {'cut' if first is None else repr(first[:80])}: take a model that follows instructions, "
                f"or raise {self.key}.max_tokens"
            )
        return found

    def verdict(self, client: Any, path: Path, body: dict) -> str | None:
        """The judge's answer, from disk where it was given before; None where it was cut by max_tokens."""
        known = stored(path)
        if known is None:
            known = self.asked(client, body)
            write_json(path, known)
        else:
            self.count(known=1)
        return None if known["cut"] else known["answer"]

    def count(self, **counts: int) -> None:
        with self.counting:
            self.counts.update(counts)

    def body(self, messages: list[Message]) -> dict:
        settings = {"model": self.settings.model, "temperature": 0, "max_tokens": self.settings.max_tokens}
        return settings | {"messages": messages}

    def path(self, body: dict) -> Path:
        digest = hashlib.sha256(json.dumps(body, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest}.json"

    def asked(self, client: Any, body: dict) -> dict:
        """Ask until there is an answer, at most TRIES times. Raises Problem."""
        wait = FIRST_WAIT
        for left in reversed(range(TRIES)):
            try:
                return self.once(client, body)
            except Passing as passing:
                if not left:
                    raise Problem(
                        f"{self.key}.base_url: {self.url}: {passing}, {TRIES} times in a row; verdicts given "
                        "so far are kept: run again"
                    ) from None
                self.sleep(min(passing.wait or wait, LONGEST_WAIT))
                wait = min(2 * wait, LONGEST_WAIT)
        raise AssertionError

    def once(self, client: Any, body: dict) -> dict:
        import httpx2

        self.count(requests=1)
        try:
            response = client.post(self.url, json=body)
        except httpx2.TimeoutException:
            raise Passing(f"no answer in {TIMEOUT:.0f} seconds") from None
        except httpx2.TransportError as error:
            raise Passing(f"not reached ({type(error).__name__})") from None
        if response.status_code in PASSING:
            raise Passing(f"status {response.status_code}", retry_after(response.headers.get("Retry-After")))
        if response.status_code != 200:
            cure = f": is {KEY} set and right?" if response.status_code in (401, 403) else ""
            raise Problem(f"{self.key}: {self.url} answers with status {response.status_code}{cure}")
        try:
            whole = response.json()
            choice = whole["choices"][0]
            answer = choice["message"]["content"]
        except (ValueError, LookupError, TypeError):
            raise Passing("its answer is no chat completion") from None
        usage = whole.get("usage") if isinstance(whole.get("usage"), dict) else {}
        self.count(**{kind: usage.get(kind) or 0 for kind in ("prompt_tokens", "completion_tokens")})
        text = answer if isinstance(answer, str) else ""
        return body | {"answer": text, "cut": choice.get("finish_reason") == "length"}

    def report(self) -> str:
        """What was asked and what it cost, in one line."""
        counts = {name: f"{self.counts[name]:,}" for name in (
            "requests", "prompt_tokens", "completion_tokens", "known", "invalid")}  # fmt: skip
        return (
            f"{self.settings.model}: {counts['requests']} requests ({counts['prompt_tokens']} tokens asked, "
            f"{counts['completion_tokens']} answered), {counts['known']} verdicts known from before, "
            f"{counts['invalid']} invalid"
        )


def preferred(straight: int | None, turned: int | None) -> float | None:
    """Of verdicts in both orders, whether the first is better: 1, 0, or ½."""
    if straight is None or turned is None:
        return None
    return {(1, 2): 1.0, (2, 1): 0.0}.get((straight, turned), 0.5)


def stored(path: Path) -> dict | None:
    try:
        known = read_json(path)
    except (OSError, ValueError):
        return None
    return known if isinstance(known, dict) and {"answer", "cut"} <= set(known) else None


def retry_after(value: str | None) -> float | None:
    """Seconds; a date is as good as nothing said."""
    try:
        return max(float(value), 0.0) if value else None
    except ValueError:
        return None
