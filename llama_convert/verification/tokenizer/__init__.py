"""Compares tokenizers: both must encode every text to the same ids.

tiktoken or sentencepiece runs the original, the library `tokenizers` runs tokenizer.json.  No code is shared
with the conversion.  Texts can only sample a tokenizer, so all tokens and all merges are compared as well.
"""

from llama_convert.verification.tokenizer.comparison import (
    check_original,
    check_tokenizer,
    compare_tokenizers,
)

__all__ = ["check_original", "check_tokenizer", "compare_tokenizers"]
