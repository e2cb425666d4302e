"""Convert Llama checkpoints between Meta and Hugging Face formats, and verify them.

Modules are imported at first use, so that importing the package is cheap.

Example:
    >>> import llama_convert
    >>> result = llama_convert.convert("Llama-2-7B", "llama-2-7b", dtype="fp16")
    >>> llama_convert.verify(result.destination, result.source).ok
    True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_convert.api import convert, inspect, shard, verify
    from llama_convert.checkpoints.lazy import LazyWeight, OpenCheckpoint, open_checkpoint
    from llama_convert.conversion.options import ConvertOptions, ConvertResult
    from llama_convert.errors import LlamaConvertError
    from llama_convert.json_output import to_json
    from llama_convert.observer import Observer
    from llama_convert.verification.options import VerifyOptions
    from llama_convert.verification.report import VerifyReport

__version__ = "0.1.0"

__all__ = [
    "ConvertOptions",
    "ConvertResult",
    "LazyWeight",
    "LlamaConvertError",
    "Observer",
    "OpenCheckpoint",
    "VerifyOptions",
    "VerifyReport",
    "convert",
    "inspect",
    "open_checkpoint",
    "shard",
    "to_json",
    "verify",
]

_MODULES = {
    "api": ("convert", "inspect", "shard", "verify"),
    "checkpoints.lazy": ("LazyWeight", "OpenCheckpoint", "open_checkpoint"),
    "conversion.options": ("ConvertOptions", "ConvertResult"),
    "errors": ("LlamaConvertError",),
    "json_output": ("to_json",),
    "observer": ("Observer",),
    "verification.options": ("VerifyOptions",),
    "verification.report": ("VerifyReport",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"llama_convert.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
