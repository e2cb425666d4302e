"""Dtypes of tensors in checkpoints, with their names in all file formats."""

from __future__ import annotations

from dataclasses import dataclass

from llama_convert.errors import UsageError


@dataclass(frozen=True)
class Dtype:
    """Data type of the elements of a tensor."""

    name: str
    """Name in torch and in `torch_dtype` of config.json."""
    itemsize: int
    """Bytes per element."""
    safetensors: str
    """Name in safetensors headers."""
    storage: str
    """Storage class in pickles of ``.pth`` files."""
    short: str = ""
    """Value of ``--dtype``; empty for dtypes that weights are not converted to."""

    def __str__(self) -> str:
        return self.name


FLOAT32 = Dtype("float32", 4, "F32", "FloatStorage", "fp32")
FLOAT16 = Dtype("float16", 2, "F16", "HalfStorage", "fp16")
BFLOAT16 = Dtype("bfloat16", 2, "BF16", "BFloat16Storage", "bf16")

WEIGHT_DTYPES = (FLOAT32, FLOAT16, BFLOAT16)
"""Dtypes of unquantized weights."""

DTYPES = (
    *WEIGHT_DTYPES,
    Dtype("float64", 8, "F64", "DoubleStorage"),
    Dtype("complex64", 8, "C64", "ComplexFloatStorage"),
    Dtype("int64", 8, "I64", "LongStorage"),
    Dtype("int32", 4, "I32", "IntStorage"),
    Dtype("int16", 2, "I16", "ShortStorage"),
    Dtype("int8", 1, "I8", "CharStorage"),
    Dtype("uint8", 1, "U8", "ByteStorage"),
    Dtype("bool", 1, "BOOL", "BoolStorage"),
    Dtype("float8_e4m3fn", 1, "F8_E4M3", "Float8_e4m3fnStorage"),
    Dtype("float8_e5m2", 1, "F8_E5M2", "Float8_e5m2Storage"),
)
"""All dtypes that errors can name, including unsupported ones."""

BY_NAME = {dtype.name: dtype for dtype in DTYPES}
BY_STORAGE = {dtype.storage: dtype for dtype in DTYPES}
BY_SAFETENSORS = {dtype.safetensors: dtype for dtype in DTYPES}


def parse_weight_dtype(text: str) -> Dtype | None:
    """The dtype with a name like ``bf16``, ``bfloat16`` or ``half``; None for ``auto`` (as in the source).

    Raises:
        UsageError: no dtype in `WEIGHT_DTYPES` has this name.
    """
    name = text.lower().removeprefix("torch.")
    if name == "auto":
        return None
    for dtype in WEIGHT_DTYPES:
        if name in (
            dtype.short,
            dtype.name,
            dtype.safetensors.lower(),
            dtype.storage.lower().removesuffix("storage"),
        ):
            return dtype
    choices = ", ".join(["auto", *(dtype.short for dtype in WEIGHT_DTYPES)])
    raise UsageError("BAD_DTYPE", f"Unknown dtype: --dtype {text}.", hint=f"Choose one of {choices}.")
