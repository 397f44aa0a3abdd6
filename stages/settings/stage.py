"""A stage at work: what it may see, and what must not change meanwhile.

`with stage("sft") as params:` wraps the work of every stage. It checks the WHOLE of params.yaml, so that a
bad `method` never costs an sft run; gives the stage only what dvc.yaml declares for it, so that an undeclared
read fails at once; and notices params or code edited while the stage ran, which DVC would record as if they
had been used.
"""

import argparse
import hashlib
import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.settings.errors import Problem, one_line_errors
from stages.settings.params import Params
from stages.settings.reader import load, read, value_of


def declaration(name: str) -> tuple[dict, Any]:
    """The stage's entry in dvc.yaml (of a foreach, its `do`), and what its foreach goes over."""
    entry = load(Path("dvc.yaml"))["stages"][name]
    return entry.get("do", entry), entry.get("foreach", [])


def declared_keys(name: str, params: Params, item: str = "") -> list[str]:
    """The params that dvc.yaml declares for a stage, with ${…} filled in."""
    entry, each = declaration(name)
    value = each[item] if isinstance(each, dict) else item
    chosen = {"model": params.model, "data": params.data, "method": params.method}
    values = chosen | {"key": item, "item": value}
    return [
        re.sub(r"\$\{([\w.]+)\}", lambda m: value_of(values, m[1]), key) for key in entry.get("params", [])
    ]


def only(value: Any, keys: list[str]) -> Any:
    """A copy of a section with nothing but `keys` (dotted); reading anything else raises Problem."""
    if "" in keys:
        return value
    names = list(value) if isinstance(value, dict) else type(value).model_fields
    kept = {}
    for name in names:
        below = [key[len(name) :].lstrip(".") for key in keys if key == name or key.startswith(name + ".")]
        if below:
            kept[name] = only(value[name] if isinstance(value, dict) else getattr(value, name), below)
    return kept if isinstance(value, dict) else type(value).model_construct(**kept)


@contextmanager
def stage(name: str, item: str = "") -> Iterator[Params]:
    """Check params.yaml, yield what the stage may read, and fail if its params or code moved meanwhile.

    `item` is the stage's item where dvc.yaml has a foreach.
    """
    quiet()
    if name not in ("fetch", "base"):
        os.environ["HF_HUB_OFFLINE"] = "1"
    with one_line_errors():
        params = read()
        before = _snapshot(name, params, item)
        yield only(params, declared_keys(name, params, item))
        after = _snapshot(name, read(), item)
        for key in before:
            if before[key] != after.get(key):
                raise Problem(
                    f"{key} changed while stage {name} was running, so its result is not recorded: run again"
                )


def role_argument(name: str, description: str, roles: Iterable[str]) -> str:
    """The role that the command line of a stage gives."""
    parser = argparse.ArgumentParser(f"python -m stages.{name}", description=description)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("role", choices=list(roles))
    return parser.parse_args().role


def quiet() -> None:
    """Before any library is imported: no noise that a user cannot act on."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # a GPU's memory in fewer pieces
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # and no request but for files
    os.environ["HF_HUB_VERBOSITY"] = (
        "error"  # its warnings repeat what a server says, be it the token it was sent
    )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)  # what a library will call differently one day


def _snapshot(name: str, params: Params, item: str) -> dict[str, str]:
    """The values of a stage's params and the digests of its modules, as they are now."""
    code = [Path(path) for path in declaration(name)[0]["deps"] if path.startswith("stages/")]
    modules = [file for path in code for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))]
    whole = params.model_dump()
    values = {key: repr(value_of(whole, key)) for key in declared_keys(name, params, item)}
    return values | {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in modules}
