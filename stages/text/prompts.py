"""Prompt templates: the one place that turns messages into text, for training, evaluation and use.

A template renders messages into a prompt that ends where the answer begins; the answer ends in the template's
stop token. To add a template, add an entry to TEMPLATES and name it in `prompt.template`.
"""

import hashlib
from dataclasses import dataclass, field, replace

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END_OF_TEXT, IM_START, IM_END)
Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


@dataclass(frozen=True)
class Template:
    """How a conversation looks as text. Each marker is put before its turn's content, `turn_end` after it.

    The opening marker of the assistant ends in a newline: a marker that ends in a blank would merge with the
    answer's first token. `stop` is a single token of the vocabulary; `end_of_text` is what ended texts before
    the model was tuned.
    """

    system: str
    user: str
    assistant: str
    turn_end: str
    stop: str
    end_of_text: str = field(default=END_OF_TEXT, repr=False)

    def of(self, end_of_text: str) -> "Template":
        """The same for a model whose texts end otherwise than Qwen's."""
        stop = end_of_text if self.stop == self.end_of_text else self.stop
        return replace(self, stop=stop, end_of_text=end_of_text)

    def render(self, messages: list[Message], system: str = "") -> str:
        """The prompt for the next assistant turn. `system` is used where the messages bring no system turn of
        their own.
        """
        if system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system}, *messages]
        turns = []
        for message in messages:
            marker = getattr(self, message["role"])
            end = f"{self.stop}\n" if message["role"] == "assistant" else self.turn_end
            turns.append(f"{marker}{message['content']}{end}")
        return "".join(turns) + self.assistant

    def question(self, prompt: str) -> str | None:
        """What a rendered prompt asks; None for one of several turns."""
        if prompt.count(self.user) != 1 or prompt.count(self.assistant) != 1:
            return None
        return prompt.split(self.user)[1].removesuffix(self.turn_end + self.assistant)

    def answers(self, messages: list[Message], first: int, system: str = "") -> list[tuple[int, int]]:
        """Where the assistant's turns from the place `first` on stand in the rendered text of a conversation:
        start and end in characters, the stop token of each included.
        """
        starts = [
            (len(self.render(messages[:place], system)), self.complete(message["content"]))
            for place, message in enumerate(messages)
            if place >= first and message["role"] == "assistant"
        ]
        return [(start, start + len(text)) for start, text in starts]

    @property
    def stops(self) -> list[str]:
        """The tokens that end an answer where a model is used: its stop token, and what ended texts before it
        was tuned.
        """
        return list(dict.fromkeys([self.stop, self.end_of_text]))

    @property
    def markers(self) -> list[str]:
        """The special tokens that it is made of, its stop token among them."""
        text = "".join([self.system, self.user, self.assistant, self.turn_end, self.stop])
        return [token for token in dict.fromkeys([*SPECIAL, self.stop]) if token in text]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()

    def complete(self, answer: str) -> str:
        """The text to be learned after a rendered prompt: the answer and the stop token."""
        return answer + self.stop

    def document(self, text: str) -> str:
        """Raw text, with what ends texts."""
        return text + self.end_of_text


TEMPLATES = {
    "chatml": Template(
        system=f"{IM_START}system\n",
        user=f"{IM_START}user\n",
        assistant=f"{IM_START}assistant\n",
        turn_end=f"{IM_END}\n",
        stop=IM_END,
    ),
    "arabic": Template(
        system="", user="### التعليمات:\n", assistant="### الإجابة:\n", turn_end="\n\n", stop=END_OF_TEXT
    ),
}
