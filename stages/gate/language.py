"""Whether a row is in Arabic: by the letters of the user's turns and of the answer, without what is in no
language.
"""

import re
from itertools import chain

from stages.text.arabic import LETTERS, arabic_share
from stages.text.letters import WORD, foreign_words, is_foreign

# Code, calls of tools, addresses, mentions, formulas, markup, and the names of variables.
NO_LANGUAGE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]+`|<tool_(call|response)>.*?(?:</tool_\1>|\Z)|</?[a-zA-Z][^<>]*>|&\w+;"
    r"|\$\$.{1,999}?\$\$|\$[^$\n]+\$|\\\(.{1,999}?\\\)|\\\[.{1,999}?\\\]|\\[a-zA-Z]+|\b[A-Za-z]\b"
    r"|(?:https?://|www\.)\S+|\b[\w.+-]{1,64}@[\w.-]+|[@#]\w*[A-Za-z]\w*",
    re.DOTALL,
)
LATIN_LETTER = re.compile("[A-Za-zÀ-ɏ]")  # in all of these
# A user's turn that has another language, or code, for an answer or as its material.
ASKS_FOR_OTHER = re.compile(
    r"ترجم|باللغ|اللغة|لغة|[إا]نجليزي|[إا]نكليزي|فرنسي|[أا]لماني|[إا]سباني|إيطالي|لاتيني|صيني|ياباني|تركي"
    r"|كود|شفرة|شيفرة|برمج|بايثون|جافا|دالة|استعلام|translat|arabic|python|html|sql|code",
    re.IGNORECASE,
)
ASKS_FOR_ARABIC = re.compile(r"\b(?:arabic|arabe|arabizi|darija)\b", re.IGNORECASE)  # in another language
# Words without which nobody writes a sentence; names and terms alone are in no language.
PROSE = re.compile(
    r"\b(?:the|an|is|are|was|of|and|to|in|on|for|it|i|you|we|he|they|this|that|with|not|do|le|la|les|des|du|et|est|un|une"
    r"|en|que|pour|je|der|die|das|und|ist|el|los|de|y|por)\b",
    re.IGNORECASE,
)
# Arabic in Latin letters: digits stand for letters that these have not, as in 3la and ma7abba. Without
# any, it is known by frequent words that few others write (not by ya and ana, which Swahili has), verbs
# between ma and ch, and laughter.
ARABIZI_WORDS = set(
    (
        "fih fiha fik fel fil bih biha bik bel bil lih liha lik liya lina lia lel mel wel mn "
        "enti inti enta houwa howa hiya hna ahna ehna houma homa ntouma rani rak rah raho rahou "
        "rana kont kount kunt knt kol koul kolchi koulchi hada hadi hadha hadchi hadak hadik hado "
        "haja kima wach wech chkoun chkon chnowa chnou chno achno kifach kifech kif kifak keef wayn "
        "feen imta lesh eih elli eli illi ghir ghadi baghi bghit dyal dyali dyalk dyalkom bach bech "
        "bch barcha bzaf bezaf bzf yesser ktir kteer machi mouch moch mch msh mish mala malla bla bela "
        "wela wla ola walo walou hta daba lyoma dima mazal bsah khouya khoya sahbi zwin zwina mlih "
        "mliha keda kda shu shou yalla rabi rabbi alah lah hamdoulah hamdulillah wallah walah wallahi "
        "wellah wlh nchalah nchallah inchalah inchallah rebi elah enchalah nachallah machallah kayen "
        "kayn bessah salem alikoum"
    ).split()
)
ARABIZI = re.compile(
    r"\b(?:(?=\w*[A-Za-z])(?:[A-Za-z']+[235789]|[2379](?=[A-Za-z]{2}))[A-Za-z235789']*|ma\w{2,}[cs]h|h{3,})\b"
)
WORDS = re.compile(r"\w+")
ONLY_ARABIC = re.compile("[ةأإ]|(?<![\\w\u200c])ال")  # which Persian and Urdu hardly write
MATERIAL = 3  # Latin words in an Arabic question that the answer is about


def share(asked: str, answered: str) -> float:
    """The share of Arabic among the letters of the user's turns and the answer."""
    return arabic_share(spoken(f"{asked}\n{answered}"))


def spoken(text: str) -> str:
    """A text without what is in no language."""
    return NO_LANGUAGE.sub(" ", text) if LATIN_LETTER.search(text) else text


def is_arabic(asked: str, answered: str, least: float) -> bool:
    """Whether a row too few of whose letters are Arabic is for Arabic still.

    Its answer alone may be Arabic (a translation into it, which copies names and terms), or its question,
    where that asks for another language, brings material in it, or is answered by names.
    """
    asked, answered = spoken(asked), spoken(answered)
    if is_arabizi(asked, answered):
        return True
    copied = set(latin_words(asked))
    own = LETTERS.sub(lambda word: "" if word[0] in copied else word[0], answered)
    letters = sum(map(len, LETTERS.findall(own)))
    if letters and ASKS_FOR_ARABIC.search(asked) and (in_arabizi(answered) or not is_prose(own, 0.25)):
        return True
    answer_is_arabic, asks = arabic_share(own) >= least, bool(ASKS_FOR_OTHER.search(asked))
    if is_foreign(asked) and not ONLY_ARABIC.search(own):  # Persian, and so, likely, is its answer
        answer_is_arabic = False
    arabic_words = len(WORD.findall(asked)) - len(foreign_words(asked))
    if answer_is_arabic and (letters > 1 or (letters and (asks or arabic_words))):
        return True
    if arabic_words < 2:
        return False
    names = arabic_share(asked) >= least and not is_prose(answered)
    return asks or len(latin_words(asked)) >= MATERIAL or names


def is_prose(text: str, most: float = 0.05) -> bool:
    """Whether a text is in sentences of a language other than Arabic: more than this share of its words are
    such as no sentence does without.
    """
    latin, words = latin_words(text), LETTERS.findall(text)
    others = len(words) - len(latin) - len(WORD.findall(text)) + len(foreign_words(text))
    return others > 0 or len(PROSE.findall(text)) > most * len(latin)


def is_arabizi(*texts: str) -> bool:
    """Whether one of the texts, or all together, are in Arabizi: more than one of its words, and more than a
    tenth of all.
    """
    found, latin = [in_arabizi(text) for text in texts], [len(latin_words(text)) for text in texts]
    wholes = [*zip(found, latin), (list(chain.from_iterable(found)), sum(latin))]
    return any(len(set(words)) > 1 and len(words) > 0.1 * count for words, count in wholes)


def in_arabizi(text: str) -> list[str]:
    """The words of a text that are in Arabizi, for certain."""
    text = text.lower()
    return ARABIZI.findall(text) + [word for word in WORDS.findall(text) if word in ARABIZI_WORDS]


def latin_words(text: str) -> list[str]:
    return [word for word in LETTERS.findall(text) if LATIN_LETTER.search(word)]
