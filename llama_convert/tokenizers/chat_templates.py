"""Chat templates for the prompt formats that Meta published.

They are Jinja templates for transformers 4.45 and later (`trim_blocks` and `lstrip_blocks`).
"""

from __future__ import annotations

from importlib.resources import files

from llama_convert.errors import UsageError

# Models by the name of their template.  Llama Guard has none: its prompt is a task with a whole conversation.
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
        UsageError: no template has this name.
    """
    if name not in CHAT_TEMPLATES:
        hint = f"Choose one of {', '.join(CHAT_TEMPLATES)}."
        raise UsageError("CHAT_TEMPLATE_INVALID", f"Unknown chat template {name!r}.", hint=hint)
    template = files("llama_convert.tokenizers") / "templates" / f"{name}.jinja"
    return template.read_text(encoding="utf-8")
