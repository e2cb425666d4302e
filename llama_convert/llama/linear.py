"""Matrix products with weights of any dtype, without ever widening a whole weight."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS = 128
"""Rows of a weight that are widened at a time: few enough for caches, enough to keep the cores busy."""


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply x [tokens, in] by weight [out, in]: [tokens, out] in x's dtype."""
    return _by_onednn(x, weight) if _onednn_can(x, weight) else F.linear(x, weight.to(x.dtype))


def _onednn_can(x: Tensor, weight: Tensor) -> bool:
    """Where PyTorch would take MKL's float32 product, which on AMD's CPUs is two to three times slower."""
    learns = x.requires_grad or weight.requires_grad  # for which oneDNN's tensors have no gradient
    on_cpu = x.device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return on_cpu and x.dtype == torch.float32 and not learns


def _by_onednn(x: Tensor, weight: Tensor) -> Tensor:
    tokens = x.to_mkldnn()
    products = [F.linear(tokens, rows.float().to_mkldnn()) for rows in torch.split(weight, ROWS)]
    return torch.cat([product.to_dense() for product in products], dim=1)
