"""Conversion of Meta's `tokenizer.model` to the tokenizer files of Hugging Face, with the same ids."""

from llama_convert.tokenizers.added_tokens import RECORDS, added_tokens
from llama_convert.tokenizers.chat_templates import CHAT_TEMPLATES, chat_template
from llama_convert.tokenizers.convert import TokenizerReport, convert_tokenizer, open_tokenizer
from llama_convert.tokenizers.special_tokens import SpecialTokenNames, special_tokens
from llama_convert.tokenizers.tiktoken_ranks import ranks_of_tokenizer_json, read_tiktoken
from llama_convert.tokenizers.tokenizer import Tokenizer, TokenizerOptions

__all__ = [
    "CHAT_TEMPLATES",
    "RECORDS",
    "SpecialTokenNames",
    "Tokenizer",
    "TokenizerOptions",
    "TokenizerReport",
    "added_tokens",
    "chat_template",
    "convert_tokenizer",
    "open_tokenizer",
    "ranks_of_tokenizer_json",
    "read_tiktoken",
    "special_tokens",
]
