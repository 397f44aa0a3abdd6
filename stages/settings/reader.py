"""params.yaml, read and checked whole. Nothing else reads it."""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from stages.settings import memory
from stages.settings.errors import Problem
from stages.settings.params import Model, Params, Section


def read(path: Path = Path("params.yaml")) -> Params:
    """Read and check the whole file. Raises Problem naming the key, its value and what is allowed."""
    try:
        params = Params.model_validate(with_defaults(load(path)))
    except ValidationError as error:
        first, *others = error.errors()
        if first["loc"] and str(first["loc"][0]).endswith("_defaults"):
            # Each entry that has it from there has the same error.
            others = [one for one in others if one["loc"][0] not in ("models", "methods")]
        more = f" (and {len(others)} more)" if others else ""
        raise Problem(f"params.yaml: {explain(first)}{more}") from None
    memory.check(params)
    return params


def with_defaults(raw: Any) -> Any:
    """The file with model_defaults and method_defaults put into each entry that says nothing else."""
    if not isinstance(raw, dict):
        return raw
    whole = dict(raw)
    require_parts(raw.get("models"))
    for table, defaults in (("models", "model_defaults"), ("methods", "method_defaults")):
        if isinstance(raw.get(table), dict):
            whole[table] = {name: merged(raw.get(defaults), own) for name, own in raw[table].items()}
    return whole


def require_parts(models: Any) -> None:
    """Raise Problem where an entry leaves out a whole part, which dvc.yaml names: DVC would stop there, but
    not before data and base are fetched.
    """
    for name, own in models.items() if isinstance(models, dict) else ():
        for part in Model.model_fields if isinstance(own, dict) else ():
            if part not in own:
                raise Problem(
                    f"params.yaml: models.{name}.{part} is missing: add `{part}: {{}}`, which takes "
                    "model_defaults"
                )


def merged(defaults: Any, own: Any) -> Any:
    """`own`, with what it leaves out at any depth taken from `defaults`."""
    if not (isinstance(defaults, dict) and isinstance(own, dict)):
        return own
    return defaults | {key: merged(defaults.get(key), value) for key, value in own.items()}


def load(path: Path) -> Any:
    """A YAML file. Raises Problem where it is none."""
    # Not PyYAML, which reads 5e-6 as a string; ruamel is also what `dvc exp run -S` writes with.
    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Problem(f"{path} not found: run from the root of the repository") from None
    except Exception as error:
        raise Problem(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def explain(error: dict) -> str:
    """One of pydantic's errors: the key, its value and what is allowed."""
    names = [
        str(part)
        for part in error["loc"]
        if part not in ("int", "float", "str", "constrained-int") and "[" not in str(part)
    ]
    key = ".".join(names)
    if error["type"] == "extra_forbidden":
        near = get_close_matches(names[-1], {name for section in sections() for name in section.model_fields})
        return f"{key} is not a known key: {f'did you mean {near[0]}?' if near else 'remove it'}"
    if error["type"] == "missing":
        return f"{key} is missing: add it (git shows the last good value)"
    if error["type"] == "value_error":
        return f"{key}: {error['ctx']['error']}" if key else str(error["ctx"]["error"])
    return f"{key} is {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def sections(of: type[Section] = Section) -> Iterator[type[Section]]:
    """Every kind of section that params.yaml has."""
    for section in of.__subclasses__():
        yield section
        yield from sections(section)


def fill(text: str, values: dict) -> str:
    """A text of dvc.yaml with each ${key} in it exchanged for its value."""
    return re.sub(r"\$\{([\w.]+)\}", lambda match: str(value_of(values, match[1])), text)


def value_of(params: dict, key: str) -> Any:
    """The value of a dotted key; None where it does not exist."""
    value: Any = params
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
