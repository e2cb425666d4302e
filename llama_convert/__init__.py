"""Convert Meta's Llama checkpoints to Hugging Face safetensors and back, in flat memory and with proof.

Names are imported when they are first used: importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_convert.checkpoints.lazy import LazyWeight, OpenCheckpoint, open_checkpoint
    from llama_convert.conversion.convert import convert, shard
    from llama_convert.conversion.options import ConvertOptions, ConvertResult
    from llama_convert.errors import LlamaConvertError
    from llama_convert.inspection.inspect import inspect
    from llama_convert.observer import Observer
    from llama_convert.verification.options import VerifyOptions
    from llama_convert.verification.report import VerifyReport
    from llama_convert.verification.verify import verify

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
    "verify",
]

_HOMES = {
    "checkpoints.lazy": ("LazyWeight", "OpenCheckpoint", "open_checkpoint"),
    "conversion.options": ("ConvertOptions", "ConvertResult"),
    "conversion.convert": ("convert", "shard"),
    "errors": ("LlamaConvertError",),
    "inspection.inspect": ("inspect",),
    "observer": ("Observer",),
    "verification.options": ("VerifyOptions",),
    "verification.report": ("VerifyReport",),
    "verification.verify": ("verify",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"llama_convert.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
