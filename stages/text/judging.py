"""What a model is asked that judges answers, in Arabic, and how its verdict is read.

A verdict is read strictly: the number alone, in either digits. What says anything else is no verdict, for a
number found somewhere in a sentence may be the judge's count of something.
"""

import re

from stages.text import arabic
from stages.text.prompts import Message

THINKING = re.compile(r"\A.*</think>", re.DOTALL)  # what a reasoning model puts before its answer
SCORE = re.compile(r"(10|\d)(?:\.(\d+))?(?:\s*/\s*10)?\.?")
CHOICE = re.compile(r"([012])\.?")

# lighteval 0.13.0's judge_template of alrage_qa, byte for byte.
SYSTEM = """أنت مقيّم محايد خبير باللغة العربية. يجب عليك:
1. تقييم دقة الإجابة مقارنة بالإجابة الصحيحة
2. التحقق من أن الإجابة مدعومة بالسياق المقدم
3. تقييم جودة وشمولية الإجابة

مهم جداً: يجب أن يكون ردك رقماً فقط من 0 إلى 10. لا تضف أي نص أو تفسير."""
SCALE = """أعط تقييماً من 0 إلى 10:
0-2: إجابة خاطئة تماماً
3-4: إجابة جزئية مع أخطاء
5-6: إجابة متوسطة
7-8: إجابة جيدة
9-10: إجابة ممتازة

اكتب رقماً فقط من 0 إلى 10 بدون أي نص إضافي:"""
# The same where there is no right answer to compare with.
OPEN_SYSTEM = """أنت مقيّم محايد خبير باللغة العربية. يجب عليك:
1. تقييم صحة الإجابة ومدى استجابتها للسؤال
2. تقييم سلامة لغتها ووضوحها
3. تقييم جودة وشمولية الإجابة

مهم جداً: يجب أن يكون ردك رقماً فقط من 0 إلى 10. لا تضف أي نص أو تفسير."""
PAIR_SYSTEM = """أنت مقيّم محايد خبير باللغة العربية. تُعرض عليك إجابتان عن سؤال واحد.
1. قارن صحة كل إجابة ومدى استجابتها للسؤال
2. قارن سلامة اللغة ووضوحها
3. لا تفضّل إجابة لطولها ولا لترتيبها

مهم جداً: يجب أن يكون ردك رقماً واحداً فقط: 1 إذا كانت الأولى أفضل، 2 إذا كانت الثانية أفضل، 0 إذا تساوتا."""


def score_messages(question: str, answer: str, reference: str | None) -> list[Message]:
    """Ask for 0 to 10, beside the right answer where there is one."""
    right = "" if reference is None else f"الإجابة الصحيحة: {reference}\n\n"
    asked = f"السؤال: {question}\n\nالإجابة المقدمة: {answer}\n\n{right}{SCALE}"
    return messages(OPEN_SYSTEM if reference is None else SYSTEM, asked)


def pair_messages(question: str, first: str, second: str) -> list[Message]:
    """Ask which of two answers is better: 1, 2, or 0 for a tie."""
    asked = f"السؤال: {question}\n\nالإجابة الأولى: {first}\n\nالإجابة الثانية: {second}"
    return messages(PAIR_SYSTEM, f"{asked}\n\nاكتب رقماً واحداً فقط (1 أو 2 أو 0) بدون أي نص إضافي:")


def messages(system: str, asked: str) -> list[Message]:
    return [{"role": "system", "content": system}, {"role": "user", "content": asked}]


def read_score(verdict: str) -> float | None:
    """0..1 of a verdict from 0 to 10; None where it is none."""
    found = SCORE.fullmatch(said(verdict))
    value = float(f"{found[1]}.{found[2] or 0}") if found else 11
    return value / 10 if value <= 10 else None


def read_choice(verdict: str) -> int | None:
    """1, 2 or 0 (a tie); None where it is none."""
    found = CHOICE.fullmatch(said(verdict))
    return int(found[1]) if found else None


def said(verdict: str) -> str:
    """What a judge says, without its thoughts, with digits 0–9."""
    return arabic.normalise(THINKING.sub("", verdict), digits="western").strip("*` \n").replace("٫", ".")
