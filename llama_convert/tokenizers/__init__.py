"""Meta's `tokenizer.model` files as the tokenizer files of Hugging Face: the same ids for the same text."""

from llama_convert.tokenizers.added_tokens import RECORDS, added_tokens
from llama_convert.tokenizers.chat import CHAT_TEMPLATES, chat_template
from llama_convert.tokenizers.convert import TokenizerReport, convert_tokenizer, open_tokenizer
from llama_convert.tokenizers.options import TokenizerOptions
from llama_convert.tokenizers.pipeline import Tokenizer
from llama_convert.tokenizers.special import SpecialNaming, special_tokens
from llama_convert.tokenizers.tiktoken_ranks import ranks_of_tokenizer_json, read_tiktoken

__all__ = [
    "CHAT_TEMPLATES",
    "RECORDS",
    "SpecialNaming",
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
