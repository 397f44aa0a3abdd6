"""The quality gate on single rows: raw rows → rendered prompts and answers, each with the reason to drop it,
or none.

What takes two rows to see, duplicates, is in duplicates.py; this module leaves the hashes that they are found
by.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import pyarrow as pa
from tokenizers import Encoding, Tokenizer
from xxhash import xxh3_64_intdigest

from stages.gate import defects, documents, duplicates, language
from stages.gate.leaks import Guard, Index
from stages.settings.params import Format, Prompt, Text
from stages.text import arabic
from stages.text.prompts import SPECIAL, Template
from stages.text.shingles import hash_words

PASSAGE = 20  # words
LONGEST_TOKEN = 256  # characters, more than any token of Qwen's vocabulary has
ANSWERS = {
    "instructions": ("completion",),
    "preferences": ("chosen", "rejected"),
    "continued": ("completion",),
    "sampled-sft": ("chosen", "rejected"),
    "sampled-dpo": ("chosen", "rejected"),
}
# Columns of token ids, which training reads: of a whole text and the spans of it that are trained (start,
# end, start, …), or of a prompt and both its answers.
TOKENS = {
    role: ("input_ids", "trained")
    if names == ("completion",)
    else ("prompt_ids", "chosen_ids", "rejected_ids")
    for role, names in ANSWERS.items()
}


@dataclass(frozen=True)
class Settings:
    """What a worker process needs to examine rows."""

    role: str
    text: Text
    prompt: Prompt
    template: Template
    format: Format
    tokenizer: str  # path of tokenizer.json
    leaks: Index
    any_language: frozenset[str] = field(default_factory=frozenset)  # datasets that need not be Arabic


def schema(role: str) -> pa.Schema:
    """Of examined rows: what is trained on, then what became of the row."""
    trained = ["prompt", *ANSWERS[role], "source", "id"]
    trained_ids = [(name, pa.list_(pa.int32())) for name in TOKENS[role]]
    if "completion" in trained:
        trained_ids.append(("pieces", pa.list_(documents.PIECE)))
    account = [("tokens", pa.int32()), ("saved", pa.int32()), ("cut", pa.int32())]
    account += [("arabic", pa.float32()), ("latin", pa.float32())]
    verdict = [(name, pa.string()) for name in ("split", "dataset", "reason", "detail", "leak", "text")]
    noted = [(name, pa.list_(pa.string())) for name in ("repaired", "defects")]
    compared = [("asked", pa.string()), ("said", pa.list_(pa.string()))]
    return pa.schema(
        [(name, pa.string()) for name in trained] + trained_ids + account + verdict + noted + compared
    )


@dataclass
class Examined:
    """A batch of rows and, for each, what duplicates are found by."""

    rows: pa.Table
    exact: np.ndarray  # uint64 (rows,): hash of prompt and answers
    unordered: np.ndarray  # uint64 (rows,): the same, whichever of the answers was preferred
    prompts: np.ndarray  # uint64 (rows,): hash of the prompt
    signatures: np.ndarray  # uint32 (rows, PERMUTATIONS)
    comparable: np.ndarray  # bool (rows,): long enough to be a near duplicate
    answers: np.ndarray  # uint64 (rows,): hash of answers that must be the same in a near duplicate, or 0


class Examiner:
    """Examines batches of one role's raw rows."""

    def __init__(self, settings: Settings):
        self.settings = settings
        # whose ids are those that training and evaluation see: `base` has compared them
        self.tokenizer = Tokenizer.from_file(settings.tokenizer)
        self.guard = Guard(settings.leaks)
        self.special = {*SPECIAL, settings.template.end_of_text}

    def examine(self, dataset: str, raw: list[dict]) -> Examined:
        rows = [self.cleaned(dataset, row) for row in raw]
        for row in rows:
            row["reason"] = row["reason"] or self.fault(row)
            row["detail"] = row["detail"] or self.detail(row)
        self.tokenise([row for row in rows if not row["reason"]])
        for place, row in enumerate(rows):
            if row["reason"] == "too_long" and row["fitting"]:
                rows[place] = self.shortened(dataset, raw[place], row["fitting"])
        texts = [[*row["prompt_words"], *row["answer_words"]] for row in rows]
        hashes, owners = hash_words(texts)
        for row, passage in zip(rows, passages([row["asked"] for row in rows])):
            side = split_of(passage or row["prompt_key"], self.settings.format.validation)
            row["split"] = row["split"] or side
        self.mark_leaks(rows, hashes, owners)
        pairs, owners = self.told_apart_by(rows, hashes, owners)
        return Examined(
            pa.Table.from_pylist(rows, schema(self.settings.role)),
            np.array([row["exact_key"] for row in rows], np.uint64),
            np.array([row["unordered_key"] for row in rows], np.uint64),
            np.array([row["prompt_key"] for row in rows], np.uint64),
            duplicates.minhash(pairs, owners, len(rows)),
            np.bincount(owners, minlength=len(rows)) >= duplicates.SHORTEST - 1,
            np.array([row["short_key"] for row in rows], np.uint64),
        )

    def told_apart_by(
        self, rows: list[dict], hashes: np.ndarray, owners: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The word pairs that near duplicates are found by, and their rows: without those of system turns."""
        starts = np.searchsorted(owners, np.arange(len(rows)))
        places = np.arange(len(owners)) - starts[owners]
        led = np.array([row["led"] for row in rows], int)[owners]
        ends = np.array([len(row["prompt_words"]) for row in rows], int)[owners]
        asked, answered = (places >= led) & (places < ends), places >= ends
        return duplicates.told_apart_by(
            (hashes[asked], owners[asked]), (hashes[answered], owners[answered]), len(rows)
        )

    def cleaned(self, dataset: str, row: dict) -> dict:
        """A row with normalised text, rendered by the template; a row with a fault passes as it is."""
        common = {"source": row["source"], "id": row["id"], "dataset": dataset, "split": row["split"]}
        common |= {"tokens": 0, "saved": 0, "cut": 0, "arabic": 0.0, "latin": 0.0, "leak": ""}
        common |= {"fitting": 0, "pieces": []}
        common |= {name: [] for name in TOKENS[self.settings.role]}
        if row["fault"]:
            empty = {"prompt_words": [], "answer_words": [], "contents": [], "given": []}
            empty |= {
                "prompt_key": 0,
                "exact_key": 0,
                "unordered_key": 0,
                "short_key": 0,
                "led": 0,
                "asked": "",
            }
            return common | empty | {"reason": row["fault"], "detail": row["detail"], "text": row["original"]}
        template, names = self.settings.template, ANSWERS[self.settings.role]
        there = [name for name in names if row[name]]  # a single vote has one answer
        before = [*row["prompt"], *(turn for name in there[:1] for turn in row[name][:-1])]
        given = [turn["content"] for turn in before] + [row[name][-1]["content"] for name in there]
        mended, repairs = zip(*map(defects.repaired, given)) if given else ((), ())
        contents = [normalised(content, self.settings.text) for content in mended]
        turns = [{"role": turn["role"], "content": content} for turn, content in zip(before, contents)]
        system = self.settings.prompt.system
        asked, answered = contents[: len(turns)], contents[len(turns) :]
        own = "\n".join(turn["content"] for turn in turns if turn["role"] != "system")
        prompt_words, answer_words = words_of(asked), [arabic.words(answer) for answer in answered]
        prompt_key, keys = (
            key(prompt_words, asked),
            [key(arabic.exact_words(answer), [answer]) for answer in answered],
        )
        is_document = bool(there) and row[there[0]][-1]["role"] == "text"
        if is_document:  # which has no prompt: it is held out, or not, by itself
            (prompt_key,) = keys
        complete = template.document if is_document else template.complete
        whole = f"{own}\n{''.join(answered[:1])}"
        share = language.share(own, "".join(answered[:1]))
        return common | {
            "prompt": "" if is_document else template.render(turns, system),
            **dict.fromkeys(names, ""),
            **{name: complete(answer) for name, answer in zip(there, answered)},
            "is_document": is_document, "before": template.answers(turns, len(row["prompt"]), system),
            "given": given, "contents": contents, "answers": answered,
            "prompt_words": prompt_words, "answer_words": list(chain.from_iterable(answer_words)),
            "prompt_key": prompt_key, "exact_key": joined(prompt_key, zip(there, keys)),
            "unordered_key": joined(prompt_key, sorted(keys)),
            "short_key": joined(0, keys) if duplicates.all_short(answer_words) else 0,
            "said": [dict(zip(there, answered)).get(name, "") for name in names],
            "led": sum(len(arabic.words(turn["content"])) for turn in turns if turn["role"] == "system"),
            "repaired": sorted(set(chain.from_iterable(repairs))),
            "defects": defects.defects(contents, answered[0]) if answered else [],
            "asked": own, "arabic": share, "latin": arabic.latin_share(whole) if share < 1 else 0.0,
            "reason": "", "detail": "",
        }  # fmt: skip

    def fault(self, row: dict) -> str:
        """The reason to drop a row that can be seen in its text, or ""."""
        gate, answers, contents = self.settings.format, row["answers"], row["contents"]
        if not answers or not all(contents):
            return "empty"
        if any(token in content for content in contents for token in self.special):
            return "special_token"  # it would end the turn, or open another
        longest = LONGEST_TOKEN * self.settings.prompt.max_length
        if sum(map(len, contents)) > longest and not row["is_document"] and not row["before"]:
            return "too_long"  # for certain, and counting the tokens of a whole book would take minutes
        if any(len(answer) < gate.min_answer and not is_choice(answer) for answer in answers):
            return "too_short"
        if self.is_foreign(row):
            return "wrong_language"
        if len(answers) == 2 and answers[0] == answers[1]:
            return "chosen_is_rejected"
        if not row["is_document"] and contents[-len(answers) - 1] in answers:
            return "answer_is_prompt"
        return next((name for name in row["defects"] if name in gate.drop), "")

    def is_foreign(self, row: dict) -> bool:
        least = self.settings.format.min_arabic
        if row["arabic"] >= least or row["dataset"] in self.settings.any_language:
            return False
        return not language.is_arabic(row["asked"], row["answers"][0], least)

    def detail(self, row: dict) -> str:
        """What there is to say of a reason."""
        return f"{row['arabic']:.0%} of its letters are Arabic" if row["reason"] == "wrong_language" else ""

    def tokenise(self, rows: list[dict]) -> None:
        """Token ids, tokens of prompt and longest answer, tokens that normalisation saved, and rows longer
        than max_length.
        """
        limit = self.settings.prompt.max_length
        turns = [row for row in rows if not row["is_document"]]
        by_answer = [self.parted(turns, name) for name in ANSWERS[self.settings.role]]
        changed = [row for row in rows if row["given"] != row["contents"]]
        before = self.lengths(["\n".join(row["given"]) for row in changed])
        after = self.lengths(["\n".join(row["contents"]) for row in changed])
        for row, texts in zip(turns, zip(*by_answer)):
            row |= self.ids_of(texts)
            row["tokens"] = max(len(ids) for ids, _ in texts)
            if row["tokens"] > limit:  # the stop token, or the whole answer, would be cut
                row["reason"], row["detail"] = "too_long", f"{row['tokens']} tokens"
                row["fitting"] = sum(end <= limit for end in row.get("trained", [])[1::2])
        for row in rows:
            if row["is_document"]:
                found = self.tokenizer.encode(row["completion"])
                row |= {"tokens": len(found), "pieces": documents.pieces(row["completion"], found, limit)}
        for row, then, now in zip(changed, before, after):
            row["saved"] = then - now

    def parted(self, rows: list[dict], name: str) -> list[tuple[list[int], list[int]]]:
        """Ids of every prompt with an answer; and where in them the answers of the prompt that are trained
        start and end, and the last answer starts.
        """
        encodings = self.tokenizer.encode_batch([row["prompt"] + row[name] for row in rows])
        places = ([*chain.from_iterable(row["before"]), len(row["prompt"])] for row in rows)
        return [(encoding.ids, tokens_behind(encoding, own)) for encoding, own in zip(encodings, places)]

    def ids_of(self, texts: tuple[tuple[list[int], list[int]], ...]) -> dict[str, list[int]]:
        if len(texts) == 1:
            ids, places = texts[0]
            return {"input_ids": ids, "trained": [*places, len(ids)]}
        # of a single vote the prompt alone, or less where tokens merge
        start = min(places[-1] for _, places in texts)
        (chosen, _), (rejected, _) = texts
        return {"prompt_ids": chosen[:start], "chosen_ids": chosen[start:], "rejected_ids": rejected[start:]}

    def shortened(self, dataset: str, raw: dict, answers: int) -> dict:
        """A conversation too long to be trained whole, up to the last of `answers` that fit."""
        ends = [place for place, turn in enumerate(raw["completion"], 1) if turn["role"] == "assistant"]
        row = self.cleaned(dataset, raw | {"completion": raw["completion"][: ends[answers - 1]]})
        row |= {"reason": self.fault(row), "cut": len(ends) - answers}
        row["detail"] = self.detail(row)
        if not row["reason"]:
            self.tokenise([row])
        return row

    def lengths(self, texts: list[str]) -> list[int]:
        return [len(encoding) for encoding in self.tokenizer.encode_batch_fast(texts)]

    def mark_leaks(self, rows: list[dict], hashes: np.ndarray, owners: np.ndarray) -> None:
        listed = self.guard.find_listed([row["asked"] for row in rows])
        for number, item in (listed | self.guard.find(hashes, owners)).items():
            row = rows[number]
            if row["split"] == "train" and not row["reason"]:  # what is held out is not trained on
                row["leak"] = item
                if self.settings.format.leaks == "drop":
                    row["reason"], row["detail"] = "leak", f"holds {item.replace(chr(9), ' ')}"


def cleaned(text: str, policy: Text) -> str:
    """A text as it is trained on."""
    return normalised(defects.repaired(text)[0], policy)


def normalised(text: str, policy: Text) -> str:
    return arabic.normalise(
        text,
        tashkeel=policy.tashkeel,
        tatweel=policy.tatweel,
        digits=policy.digits,
        lookalikes=policy.lookalikes,
    )


YES_OR_NO = set("نعم لا كلا بلى أجل صح صحيح خطأ خطا غلط صواب yes no true false".split())


def is_choice(answer: str) -> bool:
    """Whether so short an answer is one: a letter, a number, or yes or no."""
    core = answer.strip(" .()[]،:؛!\u0640").casefold()
    return (len(core) == 1 and core.isalpha()) or core.isdecimal() or core in YES_OR_NO


def tokens_behind(encoding: Encoding, places: list[int]) -> list[int]:
    """For places in a text, in characters, the first token that reaches behind each."""
    found = [encoding.char_to_token(place) for place in places]
    if None in found:  # a character that no token shows: a blank, say
        stops = [stop for _, stop in encoding.offsets]
        found = [next((i for i, stop in enumerate(stops) if stop > place), len(stops)) for place in places]
    return found


def words_of(texts: list[str]) -> list[str]:
    return [word for text in texts for word in arabic.words(text)]


def key(words: list[str], texts: list[str]) -> int:
    """A 64-bit hash of words, or of the texts themselves where these have no words (as "؟؟؟")."""
    known = " ".join(words) if any(word != arabic.LINE_END for word in words) else ""
    return xxh3_64_intdigest((known or "\0\0".join(texts)).encode())


def passages(asked: list[str]) -> list[int]:
    """A hash of the passage that each of a batch's questions is about, by which questions on one passage stay
    on one side; 0 where there is none. It is known by the first PASSAGE words of its line, which the question
    may end; the longest line counts, but for the wording of a task, in which many of the questions agree.
    """
    starts = [
        [
            tuple(line.split(" ", PASSAGE)[:PASSAGE])
            for line in sorted(dict.fromkeys(text.split("\n")), key=len, reverse=True)
            if line.count(" ") >= PASSAGE - 1
        ]
        for text in asked
    ]
    times = Counter(chain.from_iterable(map(set, starts)))
    most = min(max(20, len(asked) // 100), len(asked) / 2)
    found = (next((start for start in own if times[start] <= most), ()) for own in starts)
    return [xxh3_64_intdigest(" ".join(start).encode()) if start else 0 for start in found]


def joined(prompt_key: int, answer_keys: Iterable) -> int:
    """A 64-bit hash of a prompt's hash and those of its answers."""
    return xxh3_64_intdigest(repr((prompt_key, *answer_keys)).encode())


def split_of(prompt_key: int, validation: float) -> str:
    """By the prompt's hash, so that no prompt stands on both sides."""
    return "validation" if prompt_key / 2**64 < validation else "train"
