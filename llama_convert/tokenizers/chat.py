"""Chat templates, written after the formats that Meta publishes.

Each is Jinja as transformers renders it (a sandbox with `trim_blocks` and `lstrip_blocks`), from 4.45 on.
"""

from __future__ import annotations

from importlib.resources import files

from llama_convert.errors import UsageError

# The templates by name, with the models that speak them.  Guard models have none: their prompt is a task
# around a whole conversation.
CHAT_TEMPLATES: dict[str, str] = {
    "llama2": "Llama 2 Chat; Code Llama 7B, 13B and 34B Instruct",
    "codellama-70b": "Code Llama 70B Instruct",
    "llama3": "Llama 3 Instruct",
    "llama3.1": "Llama 3.1 and 3.3 Instruct",
    "llama3.2": "Llama 3.2 1B and 3B Instruct",
}


def chat_template(name: str) -> str:
    """The Jinja text of one of `CHAT_TEMPLATES`.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in CHAT_TEMPLATES:
        raise UsageError("CHAT_TEMPLATE", f"no chat template {name!r}; there are {', '.join(CHAT_TEMPLATES)}")
    template = files("llama_convert.tokenizers") / "templates" / f"{name}.jinja"
    return template.read_text(encoding="utf-8")
