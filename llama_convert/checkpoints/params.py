"""Meta's ``params.json``, read strictly: what it says is checked here, what it means in `meta`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_convert.errors import InputError

_MAX_BYTES = 1 << 20
_MAX_LAYERS = 10_000
_MAX_WIDTH = 1 << 24

_UNSUPPORTED = {
    "quantization_args": "a quantised release",
    "lora_args": "a release with LoRA adapters",
    "moe_args": "Llama 4 (mixture of experts)",
    "vision_args": "Llama 4 (vision)",
    "vision_chunk_size": "Llama 3.2 Vision",
}


@dataclass(frozen=True)
class Params:
    """The values of a ``params.json``; None where it says nothing."""

    file: Path
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int | None
    vocab_size: int | None
    multiple_of: int | None
    ffn_dim_multiplier: float | None
    norm_eps: float
    rope_theta: float | None
    use_scaled_rope: bool
    nested: bool
    """Everything stood under a key ``model``, as in Llama Guard 1."""
    raw: dict[str, Any] = field(compare=False)

    @property
    def ffn_dim(self) -> int | None:
        """The feed-forward width by Meta's formula (``models/llama3/model.py: FeedForward``)."""
        if self.multiple_of is None:
            return None
        width = int(2 * (4 * self.dim) / 3)
        if self.ffn_dim_multiplier is not None:
            width = int(self.ffn_dim_multiplier * width)
        return self.multiple_of * ((width + self.multiple_of - 1) // self.multiple_of)


def read_params(file: Path) -> Params:
    """The hyper-parameters in ``file``.

    Raises:
        InputError: missing, not JSON, a value of the wrong type or out of range, or a model that is no dense
            text Llama.
    """

    def refuse(code: str, message: str, hint: str | None = None) -> InputError:
        return InputError(code, message, file=file, hint=hint)

    try:
        if file.is_file() and file.stat().st_size > _MAX_BYTES:
            raise refuse("PARAMS_JSON", f"{file.stat().st_size:,} bytes; that is no params.json")
        text = file.read_bytes()
    except FileNotFoundError:
        raise refuse("PARAMS_MISSING", "not found", "it belongs beside consolidated.00.pth") from None
    except OSError as error:
        raise refuse("PARAMS_JSON", error.strerror or str(error)) from None
    if text.lstrip().startswith(b"<"):
        raise refuse("PARAMS_JSON", "an HTML page, not JSON (expired link?)", "download it again")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in items:
            if key in result:
                raise refuse("PARAMS_JSON", f'"{key}" appears twice ({result[key]} and {value})')
            result[key] = value
        return result

    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=pairs)
    except UnicodeDecodeError:
        raise refuse("PARAMS_JSON", "not UTF-8 text") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise refuse("PARAMS_JSON", f"not valid JSON at {where}: {error.msg}", "download it again") from None
    except (RecursionError, ValueError):
        raise refuse("PARAMS_JSON", "not valid JSON: nested too deeply, or a number too long") from None
    if not isinstance(content, dict):
        raise refuse("PARAMS_JSON", f"expected a JSON object, found a {type(content).__name__}")
    nested = isinstance(content.get("model"), dict)
    raw: dict[str, Any] = content["model"] if nested else content
    for key, release in _UNSUPPORTED.items():
        if raw.get(key) is not None:
            raise refuse(
                "UNSUPPORTED_MODEL", f'"{key}" marks {release}; only dense text Llamas are converted'
            )
    return _Reader(file, raw).params(nested)


@dataclass(frozen=True)
class _Reader:
    file: Path
    raw: dict[str, Any]

    def refuse(self, message: str) -> InputError:
        return InputError("PARAMS_VALUE", message, file=self.file)

    def integer(self, key: str, most: int) -> int:
        value = self.optional_integer(key, most)
        if value is None:
            raise self.refuse(f'"{key}" is missing')
        return value

    def optional_integer(self, key: str, most: int) -> int | None:
        value = self.raw.get(key)
        if value is None:
            return None
        if type(value) is not int:
            shown = json.dumps(value)
            raise self.refuse(f'"{key}" must be a whole number, found {shown:.40} ({type(value).__name__})')
        if not 1 <= value <= most:
            raise self.refuse(f'"{key}" must be from 1 to {most:,}, found {value}')
        return value

    def optional_number(self, key: str) -> float | None:
        value = self.raw.get(key)
        if value is None:
            return None
        if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
            raise self.refuse(f'"{key}" must be a positive number, found {value!r:.40}')
        return float(value)

    def params(self, nested: bool) -> Params:
        dim = self.integer("dim", _MAX_WIDTH)
        n_heads = self.integer("n_heads", _MAX_WIDTH)
        n_kv_heads = self.optional_integer("n_kv_heads", _MAX_WIDTH)
        if dim % n_heads or (dim // n_heads) % 2:
            raise self.refuse(f"n_heads {n_heads} does not divide dim {dim} into heads of an even width")
        if n_kv_heads is not None and n_heads % n_kv_heads:
            raise self.refuse(f"n_kv_heads {n_kv_heads} does not divide n_heads {n_heads}")
        vocab_size = self.raw.get("vocab_size")
        if vocab_size is not None and vocab_size != -1:  # -1: "ask the tokenizer", LLaMA 1 and Llama 2
            vocab_size = self.integer("vocab_size", _MAX_WIDTH)
        scaled = self.raw.get("use_scaled_rope")
        if scaled not in (None, True, False):
            raise self.refuse(f'"use_scaled_rope" must be true or false, found {scaled!r:.40}')
        norm_eps = self.optional_number("norm_eps")
        if norm_eps is None:
            raise self.refuse('"norm_eps" is missing')
        return Params(
            file=self.file,
            dim=dim,
            n_layers=self.integer("n_layers", _MAX_LAYERS),
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            vocab_size=None if vocab_size == -1 else vocab_size,
            multiple_of=self.optional_integer("multiple_of", _MAX_WIDTH),
            ffn_dim_multiplier=self.optional_number("ffn_dim_multiplier"),
            norm_eps=norm_eps,
            rope_theta=self.optional_number("rope_theta"),
            use_scaled_rope=bool(scaled),
            nested=nested,
            raw=self.raw,
        )
