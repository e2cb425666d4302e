"""What a `tokenizer.model` does not say."""

from __future__ import annotations

from dataclasses import dataclass

from llama_convert.tokenizers.special import SpecialNaming


@dataclass(frozen=True)
class TokenizerOptions:
    """`naming` and `special_tokens` matter to tiktoken files only."""

    naming: SpecialNaming = "llama3.1"
    """Whose names the 256 special tokens have."""
    special_tokens: tuple[str, ...] = ()
    """Names that take the place of `naming`, from the first special id on; reserved names fill the rest."""
    instruct: bool = False
    """End with the turn (``<|eot_id|>``, Code Llama 70B's ``<step>``) where there is a token for it."""
    chat_template: str | None = None
    """Jinja text for `apply_chat_template`."""
    model_max_length: int | None = None
    """Tokens; None is no limit."""
