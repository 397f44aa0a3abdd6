"""Supervised fine-tuning: the base model learns to answer → models/sft.

Only the answers are trained (and the stop token that ends each), and documents, which are raw text: which
tokens these are stands beside them (`trained`).
"""

from pathlib import Path
from typing import TYPE_CHECKING

from stages.settings import manifest
from stages.settings.errors import one_line_errors
from stages.settings.files import read_json
from stages.settings.params import Lora, Params
from stages.settings.stage import stage

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

DATA = Path("data/formatted/instructions/train.parquet")


def main() -> None:
    with stage("sft") as params:
        from stages.model.modeling import provenance
        from stages.training import supervised
        from stages.training.run import explained, train

        with explained("sft"):
            model, rate = start(params), params.chosen_model.sft.learning_rate
            trainer = supervised.build(params, model, DATA, params.sft.epochs, rate)
            train(trainer, "sft", params, params.sft, provenance(params, DATA, parent=None))


def start(params: Params) -> "PreTrainedModel | PeftModel":
    """The base model with a fresh adapter on it, or as it is where `lora` is null."""
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    from stages.model import modeling
    from stages.model.rows import train_rows

    model = modeling.load_base(params.chosen_model.weights)
    set_seed(params.seed)  # an adapter's first weights are random
    lora = params.chosen_model.sft.lora
    if not lora:
        return model  # all rows are trained
    rows = token_rows(model, params)
    config = LoraConfig(task_type="CAUSAL_LM", **adapter(lora), trainable_token_indices=rows or None)
    return train_rows(get_peft_model(model, config))


def token_rows(model: "PreTrainedModel", params: Params) -> dict[str, list[int]]:
    """The rows of embedding and LM head that are trained beside the layers: those of special tokens of the
    template that the base model never used, by the names of the modules.
    """
    from stages.model import modeling

    tokens = modeling.template_of(params.prompt).markers
    if params.sft.train_markers == "auto":
        tokens = read_json(manifest.MANIFEST).get("untrained", [])
    if params.sft.train_markers == "never" or not tokens:
        return {}
    print(f"sft: trains the rows of {', '.join(tokens)}, too (sft.train_markers)")
    ids = modeling.load_tokenizer(params.prompt).convert_tokens_to_ids(tokens)
    tables = {
        id(table.weight): table for table in (model.get_output_embeddings(), model.get_input_embeddings())
    }
    modules = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
    return {modules[id(table)]: ids for table in tables.values()}  # of tied weights the embedding alone


def adapter(lora: Lora) -> dict:
    """Our names of a LoRA adapter's settings → PEFT's."""
    names = {
        "r": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "targets": "target_modules",
        "rslora": "use_rslora", "dora": "use_dora",
    }  # fmt: skip
    return {theirs: getattr(lora, ours) for ours, theirs in names.items()}


if __name__ == "__main__":
    with one_line_errors():
        main()
