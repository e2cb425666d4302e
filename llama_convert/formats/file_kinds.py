"""Kinds of files that users pass instead of the expected one, detected by their first bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A kind of file."""

    name: str
    """With an article, for example ``a NumPy array (.npy)``."""
    hint: str
    """What to do if another kind is expected."""


HEAD_SIZE = 1536
"""Bytes that `kind_of` needs to detect every kind: three blocks of a tar archive."""
_SAVE = "Save its tensors with torch.save or as safetensors."
DOWNLOAD_AGAIN = "Download it again."
_UNPACK = "Unpack it first."
TORCH = Kind("a PyTorch file", "Rename it to end in .pth or .bin, or save its tensors as safetensors.")
LEGACY_TORCH = Kind("a PyTorch file in the format from before version 1.6", TORCH.hint)
TAR_TORCH = Kind(
    "a PyTorch file in the tar format from before version 0.1.10",
    "If you trust it, load it with torch.load(FILE, weights_only=False) and save it with torch.save.",
)
SAFETENSORS = Kind(
    "a safetensors file", "Rename it to end in .safetensors, or save its tensors with torch.save."
)
ZIP = Kind("a zip archive", _UNPACK)
ZEROS = Kind("a file that begins with zeros (incomplete download?)", DOWNLOAD_AGAIN)
JSON = Kind("a JSON file", DOWNLOAD_AGAIN)
_KINDS: tuple[tuple[bytes, Kind], ...] = (
    (rb".{5}\0{3}\s*\{\s*[\"}]", SAFETENSORS),  # first: the length of its header may look like another kind
    (rb"(?:\xef\xbb\xbf)?\s*<", Kind("an HTML page (expired link?)", DOWNLOAD_AGAIN)),
    (rb"\s*version https://git-lfs", Kind("a git-lfs pointer", "Run: git lfs pull")),
    (rb"PK\x03\x04.{26}[^/]+/(?:data\.pkl|\.format_version|version|byteorder|\.data/)", TORCH),
    (rb"PK\x03\x04.{26}[^/]+\.npy", Kind("a NumPy archive (.npz)", _SAVE)),
    (rb"PK\x03\x04", ZIP),
    (rb"\x80.(?:\x95.{8})?\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", LEGACY_TORCH),
    (rb"L119547037146038801333356L\n", LEGACY_TORCH),
    (
        rb"GGUF",
        Kind("a GGUF file (llama.cpp)", "Convert the checkpoint that it was made from."),
    ),
    (
        rb"lmgg|fmgg|tjgg",
        Kind("a GGML file (old llama.cpp)", "Convert the checkpoint that it was made from."),
    ),
    (rb"\x93NUMPY", Kind("a NumPy array (.npy)", _SAVE)),
    (rb"\x89HDF\r\n", Kind("an HDF5 file", _SAVE)),
    (rb"\x08[\x01-\x14]\x12", Kind("an ONNX model", "Convert the checkpoint that it was made from.")),
    (rb"\x80[\x02-\x05]|[\]}]q\0|\(?[dl]p\d+\n|c[a-zA-Z_][\w.]*\n\w+\n", Kind("a Python pickle", _SAVE)),
    (rb"\x1f\x8b", Kind("a gzip file", _UNPACK)),
    (rb"BZh[1-9]1AY&SY", Kind("a bzip2 file", _UNPACK)),
    (rb"\xfd7zXZ\0", Kind("an xz file", _UNPACK)),
    (rb"\x28\xb5\x2f\xfd", Kind("a zstd file", _UNPACK)),
    (rb"7z\xbc\xaf\x27\x1c", Kind("a 7z archive", _UNPACK)),
    (rb"Rar!\x1a\x07", Kind("a RAR archive", _UNPACK)),
    (rb"(?:\./\./@PaxHeader.{1010})?sys_info\0.{248}ustar", TAR_TORCH),
    (rb".{257}ustar", Kind("a tar archive", _UNPACK)),
    (rb"\0{16}", ZEROS),
    (rb"\s*\{", JSON),
)
_PATTERNS = tuple((re.compile(pattern, re.DOTALL), kind) for pattern, kind in _KINDS)


def kind_of(head: bytes) -> Kind | None:
    """The kind of file that begins with ``head`` (up to `HEAD_SIZE` bytes); None if unknown."""
    return next((kind for pattern, kind in _PATTERNS if pattern.match(head)), None)
