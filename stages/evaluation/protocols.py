"""How a multiple-choice item is asked: the text a model reads and the continuations whose probabilities are
compared.

Published scores of one benchmark differ by tens of points with the wording alone, so it is fixed to the byte,
in two styles: `lm-eval` asks as the tasks of lm-evaluation-harness 0.4.13 do, `oall` as those of lighteval
0.13.0, the harness of the Open Arabic LLM Leaderboard. A benchmark that has no task there is asked as
ArabicMMLU is in that style.

What remains different is which items count and how they are read: the harnesses also ask items that fetch
marks as faults (equal choices, overwritten questions, contradictions), and they read ArabicMMLU's CSV through
pandas, which makes a null of a choice "None" or "NA" and 5.0 of a 5 where a column of a subject holds nothing
but numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from string import ascii_uppercase

from stages.settings.errors import Problem

HARNESSES = {"lm-eval": "lm-evaluation-harness 0.4.13", "oall": "lighteval 0.13.0"}  # by style
LATIN = list(ascii_uppercase)
ARABIC = "أ ب ج د هـ و ز ح ط ي ك ل م ن س ع ف ص ق ر ش ت ث خ ذ ض ظ غ".split()  # the order of the abjad
Item = dict  # a row of the benchmarks layout of stages/sources/layouts.py


@dataclass(frozen=True)
class Request:
    """One item as it is put to a model: `prompt`, then what stands for each choice after a `delimiter`.

    The option of the highest log-probability is the model's answer (the first of equals); where `normalise`
    is "characters" and not "none", each is divided by its length first. `apart` tells that prompt and option
    are tokenised each for itself (lighteval) and not as one text (lm-eval): ":" and a letter after it may be
    one token.
    """

    prompt: str
    answers: list[str]
    delimiter: str
    normalise: str
    apart: bool

    @property
    def options(self) -> list[str]:
        """The continuations of the prompt, as a harness scores them."""
        return [self.delimiter + answer for answer in self.answers]

    @property
    def lengths(self) -> list[int]:
        """Characters of each option; neither harness counts the delimiter."""
        return [len(answer) for answer in self.answers]


# --- wordings: an item's instruction, and the rest of its question ------------------------------------------

MEANINGS = {
    "Primary": "primary school",
    "Middle": "middle school",
    "High": "high school",
    "Univ": "university",
    "Prof": "professional",
}


def english(item: Item) -> tuple[str, str]:
    """ArabicMMLU as its authors ask it (arXiv 2402.12840): in English, with where the question comes from."""
    level = f" for {MEANINGS.get(item['level'], item['level'])}" if item["level"] else ""
    country = f" in {item['country']}" if item["country"] else ""
    source = f"{item['subject']} question".lstrip() + level + country
    context = f"{item['context']}\n\n" if item["context"] else ""
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LATIN, item["choices"]))
    return (
        "",
        f"This is a {source}. Select the correct answer!\n\nQuestion: "
        f"{context}{item['question']}\n{listed}\n\nAnswer:",
    )


def dotted(item: Item) -> str:
    listed = "".join(f"{letter}. {choice}\n" for letter, choice in zip(ARABIC, item["choices"]))
    return f"{item['question']}\n{listed}الإجابة:"


def plain(item: Item) -> tuple[str, str]:
    """The context, which some of ArabicMMLU's questions need, is left out."""
    return "السؤال التالي هو سؤال متعدد الإختيارات. اختر الإجابة الصحيحة:\n\n", dotted(item)


def reading(item: Item) -> tuple[str, str]:
    """With the context, where there is one: as lighteval asks MadinahQA, whose items all have one."""
    if not item["context"]:
        return plain(item)
    instruction = "بناءً على السياق أدناه، اختر الإجابة الصحيحة للسؤال التالي من قائمة الأجوبة:\n\n"
    return instruction, f"\nالسياق:\n{item['context']}\nالسؤال:\n{dotted(item)}"


def three_letters(item: Item) -> tuple[str, str]:
    """AraTrust's choices bring their letters with them."""
    listed = "".join(f"{choice}\n" for choice in item["choices"])
    return (
        "السؤال التالي هو سؤال متعدد الإختيارات. اختر الإجابة الصحيحة: أ، ب أو ج. \n\n",
        f"{item['question']}\n{listed}الإجابة:",
    )


def counted(item: Item) -> tuple[str, str]:
    listed = "".join(f"{i}. {choice}\n" for i, choice in enumerate(item["choices"], 1))
    return plain(item)[0], f"{item['question']}\n{listed}الإجابة:"


def cultural(item: Item) -> tuple[str, str]:
    """ArabCulture as its task asks it when nothing is set: in English, with neither country nor region.

    The task's switches COUNTRY, REGION and ARABIC look on by default, but it compares them with the text
    "True", which only an environment variable is.
    """
    listed = "".join(f"{letter}. {choice.strip()}\n" for letter, choice in zip(LATIN, item["choices"]))
    return "", (
        "\nYou are tasked with selecting the most culturally appropriate option based on the context "
        f"provided below.\n\nStatement: {item['question'].strip()}\n\nConsider the cultural nuances and "
        f"choose the most suitable response from the options provided.\n\nOptions:\n{listed}\n"
    )


def four_letters(item: Item) -> tuple[str, str]:
    return "السؤال التالي هو سؤال متعدد الإختيارات. اختر الإجابة الصحيحة: أ، ب، ج، أو د... إلخ. \n\n", dotted(
        item
    )


def topic(item: Item) -> str:
    subject = item["subject"].replace("_", " ")
    return f"الأسئلة التالية هي أسئلة متعددة الإختيارات مع الجواب الصحيح حول {subject}. \n\n"


def topical(item: Item) -> tuple[str, str]:
    return topic(item), dotted(item)


def bracketed(item: Item) -> tuple[str, str]:
    listed = "\n".join(f" {letter}) {choice}\n" for letter, choice in zip(ARABIC, item["choices"]))
    return topic(item), f"السؤال: {item['question']}\n{listed}\nالإجابة:"


def numbered(item: Item) -> tuple[str, str]:
    listed = "".join(f"{i}) {choice}\n" for i, choice in enumerate(item["choices"]))
    return (
        "الأسئلة التالية هي أسئلة متعددة الإختيارات مع الجواب الصحيح\n\n",
        f"السؤال: {item['question']}\n{listed}الإجابة:",
    )


def statement(item: Item) -> tuple[str, str]:
    return "", f"السؤال: {item['question']}\nالإجابة:"


# --- the table ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Protocol:
    """How a benchmark is asked in one style.

    `answers` are "letters", "indices" (from 0), "numbers" (from 1) or the choices' "text". `task` is the
    harness task that asks byte for byte so, None where there is none. `normalise` is of the main score, what
    the harness reports as acc ("none") or acc_norm ("characters"). `examples_of` are the columns that a
    worked example must share with the item: a harness has a task, with examples of its own, for each of
    their values.
    """

    wording: Callable[[Item], tuple[str, str]]
    language: str  # of the wrapper
    answers: str
    normalise: str
    context: bool
    task: str | None
    examples_of: tuple[str, ...] = ()
    delimiter: str = ""  # between a question and its answer


def lm_eval(
    wording: Callable,
    answers: str,
    task: str | None,
    examples_of: tuple[str, ...] = (),
    language: str = "Arabic",
    delimiter: str = " ",
) -> Protocol:
    """Its tasks report acc, and but for ArabicMMLU's acc_norm, which differs from acc only where options
    differ in length.
    """
    normalise = "characters" if answers == "text" else "none"
    return Protocol(wording, language, answers, normalise, wording is english, task, examples_of, delimiter)


def oall(wording: Callable, answers: str, task: str | None, examples_of: tuple[str, ...] = ()) -> Protocol:
    """All its tasks report one score, by characters, also of letters (هـ has two)."""
    return Protocol(wording, "Arabic", answers, "characters", wording is reading, task, examples_of)


PROTOCOLS = {
    "arabicmmlu": {
        "lm-eval": lm_eval(english, "letters", "arabicmmlu", ("subject", "level"), "English"),
        "oall": oall(plain, "letters", "arabic_mmlu", ("subject", "level")),
    },
    "oall-mmlu": {
        "lm-eval": lm_eval(topical, "letters", "arabic_leaderboard_arabic_mmlu", ("subject",)),
        "oall": oall(four_letters, "letters", "arabic_mmlu_mt", ("subject",)),
    },
    "alghafa": {
        "lm-eval": lm_eval(numbered, "text", "arabic_leaderboard_alghafa", ("subject",)),
        "oall": oall(numbered, "indices", "alghafa", ("subject",)),
    },
    "arabic-exams": {
        "lm-eval": lm_eval(bracketed, "letters", "arabic_exams"),
        "oall": oall(bracketed, "letters", "arabic_exams"),
    },
    "acva": {
        "lm-eval": lm_eval(statement, "text", "arabic_leaderboard_acva", ("subject",)),
        "oall": oall(statement, "text", "acva", ("subject",)),
    },
}
OTHERS = {
    "lm-eval": lm_eval(english, "letters", None, language="English"),
    "oall": oall(reading, "letters", None),
}
# Of these one of the two harnesses has a task.
PROTOCOLS |= {
    "mmlu-ht": OTHERS | {"oall": oall(counted, "numbers", "arabic_mmlu_ht", ("subject",))},
    "madinahqa": OTHERS | {"oall": oall(reading, "letters", "madinah_qa", ("subject",))},
    "aratrust": OTHERS | {"oall": oall(three_letters, "letters", "aratrust", ("subject",))},
    "arabculture": OTHERS | {
        "lm-eval": lm_eval(cultural, "letters", "arab_culture", ("country",), "English", delimiter="")
    },
}  # fmt: skip


@dataclass(frozen=True)
class OpenProtocol:
    """How a question without choices is asked in a harness: as a chat turn, with answers of at most `tokens`.

    `judged` is the question as the harness shows it to its judge.
    """

    wording: Callable[[Item], str]
    judged: Callable[[Item], str]
    task: str
    tokens: int


def open_question(item: Item) -> str:
    return "\n".join(filter(None, (item["context"], item["question"])))


GROUNDED = "بناءً على السياقات المقترحة التالية، اجب عن السؤال التالي"


def grounded(item: Item) -> str:
    """ALRAGE; lighteval's chat turn strips the blanks between instruction and question, too."""
    return f"{GROUNDED}السؤال:\n{item['question']}\n\nالسياقات المقترحة:\n{item['context']}".strip()


def judged_grounded(item: Item) -> str:
    return f"{GROUNDED}\n\nالسؤال:\n{item['question']}\n\nالسياقات المقترحة:\n{item['context']}\n"


OPEN = {
    "alrage": OpenProtocol(grounded, judged_grounded, "lighteval 0.13.0, alrage_qa", 200),
    # The harness has the English task alone; its prompts are chat turns as they stand, its answers this long.
    **dict.fromkeys(
        ("arabic-ifeval", "marco-mif"),
        OpenProtocol(open_question, open_question, "lm-evaluation-harness 0.4.13, ifeval", 1280),
    ),
}


def protocol(benchmark: str, style: str) -> Protocol:
    """The protocol of a benchmark; of one without an entry (CIDAR-MCQ, a user's own data) the general one of
    the style.
    """
    if style not in HARNESSES:
        raise Problem(f"evaluate.style is {style!r}: it must be one of {', '.join(HARNESSES)}")
    return PROTOCOLS.get(benchmark, OTHERS)[style]


# --- asking -------------------------------------------------------------------------------------------------


def ask(benchmark: str, item: Item, style: str, examples: list[Item]) -> Request:
    """An item with worked examples before it, as of examples_for. Raises Problem for an item without choices,
    or with too many.
    """
    how = protocol(benchmark, style)
    answers = options_of(benchmark, item, how)
    instruction, body = how.wording(item)
    if style == "lm-eval":
        shots = "".join(
            f"{''.join(how.wording(shot))}{how.delimiter}{gold(benchmark, shot, how)}\n\n"
            for shot in examples
        )
        return Request(f"{shots}{instruction}{body}", answers, how.delimiter, how.normalise, apart=False)
    shots = [f"{bare(*how.wording(shot))} {gold(benchmark, shot, how).strip()}" for shot in examples]
    prompt = "\n\n".join([*([instruction] if instruction else []), *shots, bare(instruction, body)])
    return Request(prompt, answers, "", how.normalise, apart=True)


def bare(instruction: str, body: str) -> str:
    """A question whose instruction stands once, before all: lighteval then strips the blanks around it."""
    return body.strip() if instruction else body


def gold(benchmark: str, shot: Item, how: Protocol) -> str:
    return options_of(benchmark, shot, how)[shot["answer"]]


def options_of(benchmark: str, item: Item, how: Protocol) -> list[str]:
    """What stands for each choice in an answer."""
    count, letters = len(item["choices"]), LATIN if how.language == "English" else ARABIC
    if not 0 < count <= len(letters):
        raise Problem(
            f"{benchmark}: {item['id']} has {count} choices, which cannot be asked as multiple choice: "
            "leave it out"
        )
    named = {"letters": letters[:count], "indices": [str(i) for i in range(count)], "text": item["choices"]}
    named["numbers"] = [str(i) for i in range(1, count + 1)]
    return list(named[how.answers])


def examples_for(benchmark: str, style: str, rows: list[Item], shots: int) -> Callable[[Item], list[Item]]:
    """A function from an item to its worked examples: the first `shots` of its task in the dev split, fewer
    where there are fewer.

    Both harnesses take the first of their split. An example with a fault, which would teach something wrong,
    is passed over.
    """
    columns, found = protocol(benchmark, style).examples_of, {}
    for row in rows:
        if row["split"] == "dev" and row["fault"] is None and row["answer"] is not None:
            found.setdefault(tuple(row[name] for name in columns), []).append(row)
    return lambda item: found.get(tuple(item[name] for name in columns), [])[:shots]
