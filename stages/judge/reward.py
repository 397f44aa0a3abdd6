"""A reward model judges: a sequence classification model that gives an answer to a prompt one number.

What it reads is its own chat template, or, where it brings none, prompt and answer as a pair of texts. Its
numbers have no unit and no bounds: they compare answers to the same prompt, and nothing else.
"""

from pathlib import Path

import torch
from tqdm import tqdm

from stages.judge.answered import Answered
from stages.settings.errors import Problem
from stages.settings.params import Judge

TOKENS = 8192  # of a batch, padding included


class RewardJudge:
    """`cut`: answers whose conversation was longer than max_length, of which the model read the end."""

    def __init__(self, key: str, settings: Judge):
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.settings, self.cut = settings, 0
        folder = located(key, settings.model)
        try:
            # else transformers asks the person at the terminal whether to run a model's own code
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            self.model = AutoModelForSequenceClassification.from_pretrained(
                folder,
                trust_remote_code=False,
                dtype="auto",
                use_safetensors=True,
                device_map={"": 0} if torch.cuda.is_available() else None,
            ).eval()
        except (OSError, ValueError) as error:
            raise Problem(
                f"{key}.model: {settings.model} cannot be loaded: {str(error).splitlines()[0]}"
            ) from None
        if self.model.config.num_labels != 1:
            raise Problem(
                f"{key}.model: {settings.model} gives {self.model.config.num_labels} numbers: a reward model "
                "gives one"
            )
        self.tokenizer.truncation_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model.config.pad_token_id = self.tokenizer.pad_token_id

    @property
    def record(self) -> dict:
        template = "its own" if self.tokenizer.chat_template else "a pair of texts"
        return {"kind": "reward", "model": self.settings.model, "max_length": self.settings.max_length,
                "template": template}  # fmt: skip

    @torch.inference_mode()
    def scores(self, answers: list[Answered], title: str) -> list[float | None]:
        """The model's number for each answer, the longest first."""
        encoded = [self.encoded(one) for one in answers]
        found: list[float | None] = [None] * len(answers)
        left = sorted(range(len(answers)), key=lambda i: -len(encoded[i]))
        with tqdm(
            total=len(answers),
            desc=f"{title}: judged",
            unit="answer",
            leave=False,
            dynamic_ncols=True,
            disable=None,
        ) as bar:
            while left:
                batch = left[: max(1, TOKENS // len(encoded[left[0]]))]
                inputs = self.tokenizer.pad({"input_ids": [encoded[i] for i in batch]}, return_tensors="pt")
                logits = self.model(**inputs.to(self.model.device)).logits.float()[:, 0].tolist()
                for i, value in zip(batch, logits):
                    found[i] = value
                left = left[len(batch) :]
                bar.update(len(batch))
        return found

    def encoded(self, one: Answered) -> list[int]:
        if self.tokenizer.chat_template:
            talk = [{"role": "user", "content": one.question}, {"role": "assistant", "content": one.answer}]
            text = self.tokenizer.apply_chat_template(talk, tokenize=False)
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            ids = self.tokenizer(one.question, one.answer)["input_ids"]
        self.cut += len(ids) > self.settings.max_length
        return ids[-self.settings.max_length :]

    def report(self) -> str:
        return f"{self.settings.model}: {self.cut:,} conversations cut to {self.settings.max_length:,} tokens"


def located(key: str, model: str) -> Path:
    """A folder, or a hub's repo@revision where it lies in this machine's cache."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    repo, _, revision = model.partition("@")
    try:
        return Path(snapshot_download(repo, revision=revision or None, local_files_only=True))
    except Exception:
        raise Problem(
            f"{key}.model: {model} is neither a folder nor in the hub's cache: run `hf download {repo}"
            f"{f' --revision {revision}' if revision else ''}`"
        ) from None
