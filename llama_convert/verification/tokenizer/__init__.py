"""The tokenizer: the ids of every text, as Meta's code has them.

The original is run by tiktoken or sentencepiece, tokenizer.json by the library `tokenizers`; nothing here is
shared with the converter.  Texts can only sample a tokenizer, so all tokens and all merges are compared too.
"""

from llama_convert.verification.tokenizer.check import (
    TokenizerCheck,
    check_original,
    check_tokenizer,
    compare_tokenizers,
)

__all__ = ["TokenizerCheck", "check_original", "check_tokenizer", "compare_tokenizers"]
