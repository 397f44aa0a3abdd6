"""The prompt template in the languages of those who serve the model. Each renders what stages/text/prompts.py
renders.
"""

import json

from stages.text.prompts import Template


def turns(template: Template) -> list[tuple[str, str, str]]:
    """Each role, what stands before its content, and what after it."""
    ends = {"assistant": f"{template.stop}\n"}
    return [
        (role, getattr(template, role), ends.get(role, template.turn_end))
        for role in ("system", "user", "assistant")
    ]


def jinja(template: Template, system: str, begins: bool = False) -> str:
    """A chat template for transformers, vLLM, SGLang and llama.cpp. `system` is used where the messages bring
    no system turn; `begins`: with the token that texts begin with, which they leave to the template.
    """
    turn = quoted(template.system + system + template.turn_end)
    default = f"{{%- if messages[0]['role'] != 'system' -%}}{{{{- {turn} -}}}}{{%- endif -%}}"
    branches = [
        f"{{%- {'if' if role == 'system' else 'elif'} message['role'] == '{role}' -%}}"
        f"{{{{- {quoted(before)} + message['content'] + {quoted(after)} -}}}}"
        for role, before, after in turns(template)
    ]
    return (
        ("{{- bos_token -}}" if begins else "")
        + (default if system else "")
        + "{%- for message in messages -%}"
        + "".join(branches)
        + "{%- else -%}{{- raise_exception('unknown role: ' + message['role']) -}}{%- endif -%}{%- endfor -%}"
        + f"{{%- if add_generation_prompt -%}}{{{{- {quoted(template.assistant)} -}}}}{{%- endif -%}}"
    )


def modelfile(template: Template, system: str, weights: str, context: int) -> str:
    """For `ollama create`, which fills in a template of Go's text/template.
    https://docs.ollama.com/modelfile
    """
    branches = [
        f'{{{{- {"if" if role == "system" else "else if"} eq .Role "{role}" -}}}}'
        f"{{{{- {quoted(before)} }}}}{{{{ .Content }}}}{{{{ {quoted(after)} -}}}}"
        for role, before, after in turns(template)
    ]
    go = (
        "{{- range .Messages -}}"
        + "".join(branches)
        + "{{- end -}}{{- end -}}"
        + f"{{{{- {quoted(template.assistant)} -}}}}"
    )
    lines = [
        f"FROM ./{weights}",
        f'TEMPLATE """{go}"""',
        *(f'PARAMETER stop "{stop}"' for stop in template.stops),
    ]
    lines += ["PARAMETER temperature 0", f"PARAMETER num_ctx {context}"]
    if system:
        lines.append(f'SYSTEM """{system}"""')
    return "\n".join(lines) + "\n"


# What the model card shows; %(name)s is the folder's name, %(file)s a GGUF file in it.
TRANSFORMERS = """\
transformers, which loaded this folder and answered here (see Export):

```python
from transformers import pipeline

chat = pipeline("text-generation", "%(name)s")  # the folder, or the name of a repository on the hub
print(chat([{"role": "user", "content": %(question)s}])[0]["generated_text"][-1]["content"])
```
%(answer)s"""
VLLM = """
vLLM (not run here):

```bash
vllm serve %(name)s --served-model-name %(name)s     # its chat template and stop tokens are in the folder
```
"""
LLAMA_CPP = """
llama.cpp, which answered from this file here (see Export):

```bash
llama-server -m %(file)s --jinja
```

Ollama (not run here):

```bash
ollama create %(name)s -f Modelfile
ollama run %(name)s
```

LM Studio (not run here):

```bash
lms import %(file)s
```
"""


def quoted(text: str) -> str:
    """A string as JSON, Jinja and Go all read it."""
    return json.dumps(text, ensure_ascii=False)
