"""Meta's `tokenizer.model` files as the tokenizer files of Hugging Face: the same ids for the same text."""

from llama_convert.tokenizers.chat import CHAT_TEMPLATES, chat_template
from llama_convert.tokenizers.convert import TokenizerReport, convert_tokenizer, open_tokenizer
from llama_convert.tokenizers.options import TokenizerOptions
from llama_convert.tokenizers.pipeline import Tokenizer
from llama_convert.tokenizers.special import SpecialNaming
from llama_convert.tokenizers.tiktoken_ranks import ranks_of_tokenizer_json, tokens_beyond

__all__ = [
    "CHAT_TEMPLATES",
    "SpecialNaming",
    "Tokenizer",
    "TokenizerOptions",
    "TokenizerReport",
    "chat_template",
    "convert_tokenizer",
    "open_tokenizer",
    "ranks_of_tokenizer_json",
    "tokens_beyond",
]
