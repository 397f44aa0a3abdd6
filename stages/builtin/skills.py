"""The built-in Arabic skills: the data of the embedded default, generated, with no network and no licence
attached.

Twelve families of short questions whose answers follow a rule, so that a tiny model can answer items it has
never seen. Every item is put into train, validation or test by a hash of its key; text for pretraining is
made of train items alone.

The data has two good answer forms: bare ("خمسة عشر") and a full sentence ("الجواب هو خمسة عشر."). Supervised
data mixes both, preference data prefers the sentence: that is the behaviour the preference stage is asked to
teach.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import permutations

from stages.builtin import grammar
from stages.builtin.grammar import NOUNS, PEOPLE, VERBS, VIRTUES

SEED = 20  # the data is one fixed set: `seed` in params.yaml varies training, never the exam
SENTENCE_SHARE = 0.4  # of the supervised answers are full sentences
NEAR_MISS_SHARE = 0.3  # of the preference pairs reject a wrong answer rather than a bare one


@dataclass(frozen=True)
class Item:
    """One question, whatever its phrasing. `key` is the same for two items that ask for the same
    knowledge.
    """

    family: str
    key: str
    answer: str
    near_misses: tuple[str, ...]
    slots: dict[str, str] = field(default_factory=dict)

    def question(self, rng: random.Random) -> str:
        return rng.choice(FAMILIES[self.family].questions).format(**self.slots)

    def statement(self, rng: random.Random) -> str:
        return rng.choice(FAMILIES[self.family].statements).format(answer=self.answer, **self.slots)


@dataclass(frozen=True)
class Family:
    make: Callable[[random.Random], Item]
    questions: tuple[str, ...]
    statements: tuple[str, ...]
    chance: float = 0.0  # exact match of a guess among the answers that stand in the question


# --- the families -------------------------------------------------------------------------------------------


def _item(family: str, key: str, answer: str, near_misses: list[str], **slots: str) -> Item:
    wrong = tuple(dict.fromkeys(miss for miss in near_misses if miss != answer))
    return Item(family, key, answer, wrong, slots)


def _near_numbers(n: int) -> list[int]:
    """Numbers easily taken for n: swapped last digits, one off, ten off."""
    swapped = n - n % 100 + n % 10 * 10 + n % 100 // 10
    return [k for k in (swapped, n + 1, n + 10, n - 1, n - 10, n + 100) if 0 < k < 1000 and k != n]


def number_to_words(rng: random.Random) -> Item:
    n = rng.randint(1, 999)
    misses = [grammar.number_words(k) for k in _near_numbers(n)]
    return _item("number_to_words", f"number:{n}", grammar.number_words(n), misses, n=str(n))


def words_to_number(rng: random.Random) -> Item:
    n = rng.randint(1, 999)
    misses = [str(k) for k in _near_numbers(n)]
    return _item("words_to_number", f"number:{n}", str(n), misses, words=grammar.number_words(n))


def counted_noun(rng: random.Random) -> Item:
    n, noun = (
        rng.choice([rng.randint(3, 10), rng.randint(11, 99), rng.randrange(100, 1000, 100)]),
        rng.choice(NOUNS),
    )
    answer = grammar.counted(n, noun)
    numeral = answer.rsplit(" ", 1)[0]
    other_gender = grammar.number_words(n, feminine=not noun.feminine)
    misses = [f"{other_gender} {answer.rsplit(' ', 1)[1]}"] if n < 100 else [f"{numeral} {noun.plural}"]
    misses += [
        f"{numeral} {form}"
        for form in (noun.singular, noun.plural, noun.accusative, grammar.dual(noun.singular))
    ]
    return _item("counted_noun", f"counted:{n}:{noun.singular}", answer, misses, n=str(n), noun=noun.singular)


def _described(rng: random.Random) -> tuple[str, str, str]:
    """A noun, an adjective that suits it, and that adjective in the noun's gender."""
    noun = rng.choice(NOUNS)
    quality = rng.choice(noun.qualities)
    return noun.singular, quality, grammar.agree(quality, noun.singular)


def dual(rng: random.Random) -> Item:
    noun, quality, adjective = _described(rng)
    answer = f"{grammar.dual(noun)} {grammar.dual(adjective)}"
    misses = [f"{grammar.dual(noun)} {adjective}", f"{noun} {grammar.dual(adjective)}",
              f"{grammar.dual(noun)} {grammar.sound_plural(adjective)}"]  # fmt: skip
    return _item("dual", f"dual:{noun}:{quality}", answer, misses, phrase=f"{noun} {adjective}",
                 its=grammar.possessive(noun))  # fmt: skip


def plural(rng: random.Random) -> Item:
    person, virtue, woman = rng.choice(PEOPLE), rng.choice(VIRTUES), rng.random() < 0.5
    words = [grammar.feminine(word) if woman else word for word in (person, virtue)]
    others = [word if woman else grammar.feminine(word) for word in (person, virtue)]
    both = [grammar.sound_plural(word) for word in words]
    misses = [" ".join(map(grammar.sound_plural, others)), f"{both[0]} {words[1]}", f"{words[0]} {both[1]}"]
    return _item("plural", f"plural:{words[0]}:{virtue}", " ".join(both), misses, phrase=" ".join(words),
                 its=grammar.possessive(words[0]))  # fmt: skip


def feminine(rng: random.Random) -> Item:
    person, virtue = rng.choice(PEOPLE), rng.choice(VIRTUES)
    she, good = grammar.feminine(person), grammar.feminine(virtue)
    misses = [
        f"{she} {virtue}",
        f"{person} {good}",
        f"{grammar.sound_plural(she)} {grammar.sound_plural(good)}",
    ]
    return _item(
        "feminine", f"feminine:{person}:{virtue}", f"{she} {good}", misses, phrase=f"{person} {virtue}"
    )


def definite(rng: random.Random) -> Item:
    noun, quality, adjective = _described(rng)
    the_noun, the_adjective = grammar.definite(noun), grammar.definite(adjective)
    misses = [f"{the_noun} {adjective}", f"{noun} {the_adjective}", f"{noun} {adjective}"]
    return _item(
        "definite",
        f"definite:{noun}:{quality}",
        f"{the_noun} {the_adjective}",
        misses,
        phrase=f"{noun} {adjective}",
    )


def verb(rng: random.Random) -> Item:
    stem, present = rng.choice(VERBS), rng.random() < 0.5
    table = grammar.PRESENT if present else grammar.PAST
    pronoun = rng.choice(list(table))
    answer = grammar.conjugate(stem, pronoun, present)
    misses = [grammar.conjugate(stem, other, present) for other in rng.sample(list(table), len(table))]
    return _item("verb", f"verb:{stem}:{pronoun}:{present}", answer, misses, verb=stem, pronoun=pronoun,
                 tense="المضارع" if present else "الماضي")  # fmt: skip


def neighbour(rng: random.Random) -> Item:
    n, step = rng.randint(2, 998), rng.choice([1, -1])
    misses = [str(n - step), str(n + 2 * step), str(n + 10 * step), str(n)]
    return _item(
        "neighbour",
        f"neighbour:{min(n, n + step)}",
        str(n + step),
        misses,
        n=str(n),
        relation="يلي" if step == 1 else "يسبق",
    )


def compare(rng: random.Random) -> Item:
    pair, larger = rng.sample(range(1, 100), 2), rng.random() < 0.5
    answer, other = (max(pair), min(pair)) if larger else (min(pair), max(pair))
    return _item("compare", f"compare:{min(pair)}:{max(pair)}", str(answer), [str(other)], a=str(pair[0]),
        b=str(pair[1]),
                 relation="الأكبر" if larger else "الأصغر")  # fmt: skip


def reverse(rng: random.Random) -> Item:
    words = [noun.singular for noun in rng.sample(NOUNS, 3)]
    answer = words[::-1]
    misses = [" ".join(order) for order in permutations(words) if list(order) != answer]
    rng.shuffle(misses)
    return _item(
        "reverse", "reverse:" + ":".join(min(words, answer)), " ".join(answer), misses, words=" ".join(words)
    )


def sort(rng: random.Random) -> Item:
    numbers = rng.sample(range(1, 100), 3)
    answer = sorted(numbers)
    misses = [" ".join(map(str, order)) for order in permutations(numbers) if list(order) != answer]
    rng.shuffle(misses)
    key = "sort:" + ":".join(map(str, answer))
    return _item("sort", key, " ".join(map(str, answer)), misses, numbers=" ".join(map(str, numbers)))


FAMILIES = {
    "number_to_words": Family(
        number_to_words,
        ("اكتب العدد {n} بالحروف.", "كيف يكتب العدد {n} بالكلمات؟", "ما العدد {n} بالحروف؟"),
        ("العدد {n} يكتب بالحروف: {answer}.", "{n} بالكلمات: {answer}.", "{n} هو {answer}."),
    ),
    "words_to_number": Family(
        words_to_number,
        ("اكتب العدد بالأرقام: {words}.", "ما العدد {words} بالأرقام؟", "حول إلى أرقام: {words}."),
        ("العدد {words} يكتب بالأرقام: {answer}.", "{words} بالأرقام: {answer}.", "{words} هو {answer}."),
    ),
    "counted_noun": Family(
        counted_noun,
        ("اكتب بالحروف مع المعدود: {n} ({noun}).", "كيف نقول {n} مع كلمة {noun}؟",
            "ما التعبير الصحيح عن {n} مع المعدود ({noun})؟"),
        ("نقول مع العدد {n} وكلمة {noun}: {answer}.", "{n} ({noun}): {answer}.",
            "التعبير عن {n} مع المعدود ({noun}) هو {answer}."),
    ),
    "dual": Family(
        dual,
        ("ما مثنى {phrase}؟", "حول إلى المثنى: {phrase}.", "اكتب مثنى {phrase}."),
        ("مثنى {phrase} هو {answer}.", "المثنى: {answer}، والمفرد: {phrase}.",
            "{phrase}، مثنا{its} {answer}."),
    ),
    "plural": Family(
        plural,
        ("ما جمع {phrase}؟", "حول إلى الجمع: {phrase}.", "اكتب جمع {phrase}."),
        ("جمع {phrase} هو {answer}.", "الجمع: {answer}، والمفرد: {phrase}.", "{phrase}، جمع{its} {answer}."),
    ),
    "feminine": Family(
        feminine,
        ("ما مؤنث {phrase}؟", "حول إلى المؤنث: {phrase}.", "اكتب مؤنث {phrase}."),
        ("مؤنث {phrase} هو {answer}.", "المؤنث: {answer}، والمذكر: {phrase}.", "{phrase}، مؤنثه {answer}."),
    ),
    "definite": Family(
        definite,
        ("عرف بأل: {phrase}.", "أدخل أل التعريف على {phrase}.", "ما المعرفة من {phrase}؟"),
        ("المعرفة من {phrase} هي {answer}.", "النكرة {phrase} والمعرفة {answer}.",
            "{phrase} مع أل التعريف: {answer}."),
    ),
    "verb": Family(
        verb,
        ("صرف الفعل {verb} في {tense} مع {pronoun}.",
         "كيف نصرف {verb} مع الضمير {pronoun} في {tense}؟",
         "ما صيغة الفعل {verb} مع {pronoun} في {tense}؟"),
        ("الفعل {verb} في {tense} مع {pronoun}: {answer}.",
         "نقول في {tense} من {verb}: {pronoun} {answer}.",
         "{pronoun} {answer} ({tense} من {verb})."),
    ),
    "neighbour": Family(
        neighbour,
        ("ما العدد الذي {relation} {n}؟", "اكتب العدد الذي {relation} {n}.", "أي عدد {relation} العدد {n}؟"),
        ("العدد الذي {relation} {n} هو {answer}.", "{answer} {relation} {n}.",
            "العدد {answer} {relation} العدد {n}."),
    ),
    "compare": Family(
        compare,
        ("ما العدد {relation}: {a} أم {b}؟", "اختر العدد {relation}: {a} أو {b}.",
            "{a} أم {b}، ما العدد {relation}؟"),
        ("العدد {relation} بين {a} و{b} هو {answer}.",
         "{a} و{b}: {relation} هو {answer}.", "بين {a} و{b} العدد {answer} هو {relation}."),
        chance=1 / 2,
    ),
    "reverse": Family(
        reverse,
        ("اعكس ترتيب الكلمات: {words}.", "اكتب بترتيب معكوس: {words}.", "ما معكوس ترتيب {words}؟"),
        ("الكلمات {words} بترتيب معكوس: {answer}.", "معكوس ترتيب {words} هو {answer}.",
            "{words}، بالعكس: {answer}."),
        chance=1 / 6,
    ),
    "sort": Family(
        sort,
        ("رتب الأعداد تصاعديا: {numbers}.", "اكتب من الأصغر إلى الأكبر: {numbers}.",
            "ما الترتيب التصاعدي للأعداد {numbers}؟"),
        ("الأعداد {numbers} مرتبة تصاعديا: {answer}.",
         "الترتيب التصاعدي للأعداد {numbers} هو {answer}.", "من الأصغر إلى الأكبر: {answer}."),
        chance=1 / 6,
    ),
}  # fmt: skip


# --- items and their split ----------------------------------------------------------------------------------


def split_of(key: str) -> str:
    """Where an item belongs: 10 % test, 5 % validation, the rest train, by a hash of its key."""
    bucket = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % 100
    return "test" if bucket < 10 else "validation" if bucket < 15 else "train"


def draw(family: str, split: str, rng: random.Random) -> Item:
    """A random item of a family and split."""
    while True:
        item = FAMILIES[family].make(rng)
        if split_of(item.key) == split:
            return item


def draw_mixed(split: str, rng: random.Random) -> Item:
    return draw(rng.choice(list(FAMILIES)), split, rng)


def distinct(family: str, split: str, count: int, rng: random.Random) -> list[Item]:
    """Up to `count` items with different keys; fewer where the family has fewer."""
    items: dict[str, Item] = {}
    for _ in range(20 * count):
        if len(items) == count:
            break
        item = draw(family, split, rng)
        items.setdefault(item.key, item)
    return list(items.values())


# --- answers ------------------------------------------------------------------------------------------------

SENTENCE = "الجواب هو "


def sentence(answer: str) -> str:
    return f"{SENTENCE}{answer}."


def is_sentence(text: str) -> bool:
    """Whether an answer has the full-sentence form, right or wrong."""
    return text.startswith(SENTENCE) and text.endswith(".")


def content(text: str) -> str:
    """What an answer says, whatever its form."""
    return text.removeprefix(SENTENCE).removesuffix(".")


# --- rows in the canonical layouts --------------------------------------------------------------------------


def _chat(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def _answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _splits(rows: int, every: int) -> Iterator[str]:
    """`rows` split names, one in `every` of them validation."""
    return ("validation" if i % every == every - 1 else "train" for i in range(rows))


def instructions(rows: int, seed: int = SEED) -> Iterator[dict]:
    """Questions with one good answer, some of them full sentences."""
    rng = random.Random(seed)
    for i, split in enumerate(_splits(rows, every=11)):
        item = draw_mixed(split, rng)
        answer = sentence(item.answer) if rng.random() < SENTENCE_SHARE else item.answer
        yield {"prompt": _chat(item.question(rng)), "completion": _answer(answer),
            "source": f"skills/{item.family}",
               "id": f"{i}:{item.key}", "split": split}  # fmt: skip


def preferences(rows: int) -> Iterator[dict]:
    """Pairs whose chosen answer is a right full sentence; rejected is the bare right answer or a wrong
    sentence.
    """
    rng = random.Random(SEED + 1)
    for i, split in enumerate(_splits(rows, every=6)):
        item = draw_mixed(split, rng)
        kind = "near_miss" if rng.random() < NEAR_MISS_SHARE else "form"
        rejected = sentence(rng.choice(item.near_misses)) if kind == "near_miss" else item.answer
        yield {"prompt": _chat(item.question(rng)), "chosen": _answer(sentence(item.answer)),
            "rejected": _answer(rejected),
               "source": f"skills/{kind}", "id": f"{i}:{item.key}", "split": split}  # fmt: skip


def benchmark(rows: int) -> Iterator[dict]:
    """Held-out questions with their choices (the answer and up to three near misses), `rows` for each split
    and family.

    Five train items of each family stand beside them as worked examples (split dev).
    """
    rng = random.Random(SEED + 2)
    for split, source, count in (
        ("dev", "train", 5),
        ("validation", "validation", rows),
        ("test", "test", rows),
    ):
        for family in FAMILIES:
            for item in distinct(family, source, count, rng):
                choices = [item.answer, *item.near_misses[:3]]
                rng.shuffle(choices)
                yield {"question": item.question(rng), "context": "", "choices": choices,
                    "answer": choices.index(item.answer),
                       "subject": family, "group": "", "level": "", "country": "",
                       "id": f"{family}:{item.key}",
                       "split": split}  # fmt: skip


def continued(rows: int) -> Iterator[dict]:
    """More questions of the same kinds as `instructions`, drawn anew."""
    return instructions(rows, SEED + 4)


MAKERS = {
    "instructions": instructions,
    "preferences": preferences,
    "continued": continued,
    "benchmarks": benchmark,
}


def corpus(documents: int, stop: str, chat: Callable[[str, str], str]) -> Iterator[str]:
    """Plain text for pretraining, train items alone: statements, question-and-answer lists, and a little chat
    markup.

    Like the text behind real base models it shows the chat markup without teaching it: those documents hold
    statements, not answers. `chat` renders a user and an assistant turn; every document ends in `stop`.
    """
    rng = random.Random(SEED + 3)
    for _ in range(documents):
        kind = rng.choices(["statements", "questions", "chat"], [0.6, 0.3, 0.1])[0]
        if kind == "chat":
            yield chat("اكتب جملة صحيحة.", draw_mixed("train", rng).statement(rng))
            continue
        items = [draw_mixed("train", rng) for _ in range(rng.randint(2, 6))]
        if kind == "statements":
            yield "\n".join(item.statement(rng) for item in items) + stop
        else:
            ask, reply = rng.choice([("سؤال: ", "جواب: "), ("", "")])
            yield "\n".join(f"{ask}{item.question(rng)}\n{reply}{item.answer}" for item in items) + stop
