"""What is wrong with a row that can be learned from all the same: repaired where there is no doubt, else
counted, and dropped where params.yaml asks for it.
"""

import html
import re

from stages.text.letters import TASHKEEL

# --- repairs ------------------------------------------------------------------------------------------------


def repaired(text: str) -> tuple[str, list[str]]:
    """A text without what reading it wrongly has left in it, and the names of what was repaired."""
    found = []
    for name, repair in (("mojibake", decoded), ("html_entities", unescaped)):
        better = repair(text)
        if better != text:
            text = better
            found.append(name)
    return text, found


class Misread:
    """UTF-8 that was read in a Windows encoding: ظ†ط¹ظ… or Ù†Ø¹Ù… for نعم. That the bytes are UTF-8 is the
    proof: an Arabic letter's first byte is one of four signs, and its second never stands behind these.
    """

    def __init__(self, encoding: str):
        signs = [self.sign(byte, encoding) for byte in range(256)]
        self.bytes = {sign: byte for byte, sign in enumerate(signs)}
        second = f"[{''.join(map(re.escape, signs[0x80:0xC0]))}]"
        letter = f"[{''.join(signs[0xD8:0xDC])}]{second}"
        mark = f"{signs[0xE2]}{signs[0x80]}{second}|{signs[0xC2]}{second}"  # “ … – and «
        unit = f"(?:{letter}|{mark})"
        self.certain = re.compile(f"(?:{letter}){{3}}")
        self.run = re.compile(f"{unit}(?:[\\x00-\\x7f]*{unit})*")
        self.accented = re.compile(f"{signs[0xC3]}{second}")  # é, à …

    @staticmethod
    def sign(byte: int, encoding: str) -> str:
        return bytes([byte]).decode(encoding, "ignore") or chr(byte)

    def repair(self, text: str) -> str:
        return self.run.sub(self.decoded, text) if self.certain.search(text) else text

    def decoded(self, match: re.Match) -> str:
        return bytes(self.bytes[sign] for sign in match.group()).decode("utf-8", "replace")


MISREAD = [Misread(encoding) for encoding in ("cp1256", "cp1252")]
WESTERN = MISREAD[-1]  # in which French among Arabic is misread as well: Ã© for é


def decoded(text: str) -> str:
    for misread in MISREAD:
        text = misread.repair(text)
    return WESTERN.accented.sub(WESTERN.decoded, text) if "Ã" in text else text


ENTITY = re.compile(r"&(?:#\d{2,6}|#[xX][0-9a-fA-F]{2,5}|(?!lt|gt)[a-zA-Z]{2,8}\d{0,2});")
MARKUP = re.compile(r"html|xml|</?[a-zA-Z]|`|&lt;", re.IGNORECASE)  # a text about it, or code


def unescaped(text: str) -> str:
    if "&" not in text or not ENTITY.search(text) or MARKUP.search(text):
        return text
    return ENTITY.sub(lambda match: html.unescape(match.group()), text.replace("&amp;", "&"))


# --- defects ------------------------------------------------------------------------------------------------

SIGNS = {
    "html_entities": ENTITY,
    "private_use": re.compile("[\ue000-\uf8ff\U000f0000-\U0010ffff]"),
    "replacement_character": re.compile("\ufffd"),
    "stretched": re.compile(r"([^\W\d_])\1{5}"),  # one letter, six times and more
}
CUT_OFF = re.compile(r"(?:…|\.\.|[،,:؛]|\s(?:و|في|من|على|إلى|عن|أن|الذي|التي|مع|أو|ثم))$")
REFUSAL = re.compile(
    r"(?:بصفتي|باعتباري|كوني|أنا|انا) (?:مجرد )?(?:نموذج|برنامج|ذكاء|روبوت)|كنموذج|كذكاء اصطناعي"
    r"|لا (?:أستطيع|استطيع|يمكنني|أقدر) (?:مساعدتك|المساعدة|تلبية|الإجابة|الاجابة|تقديم|تنفيذ)"
    r"|\bas an ai\b|\bas a (?:large )?language model|\bi(?:'m| am) sorry, but"
    r"|\bi (?:can't|cannot|am unable to) (?:assist|help|provide|fulfill|answer)",
    re.IGNORECASE,
)
MARKS = re.compile(f"[{TASHKEEL}]+")
OPENING = 200  # characters of an answer that a refusal stands in


def defects(contents: list[str], answer: str) -> list[str]:
    """The defects of a row, by name, from the texts of all its turns and its answer."""
    text = "\n".join(contents)
    found = [name for name, sign in SIGNS.items() if sign.search(text)]
    if CUT_OFF.search(answer[-10:]) and len(answer.split()) > 4:
        found.append("cut_off")
    if REFUSAL.search(MARKS.sub("", answer[:OPENING])):
        found.append("refusal")
    return found
