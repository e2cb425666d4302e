"""What a checkpoint says: how hard it finds an easy passage, and how it goes on from a prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from llama_convert.verification.passage import PASSAGE
from llama_convert.verification.streamed_model import Reading


@dataclass(frozen=True)
class Perplexity:
    """How hard a checkpoint finds the passage."""

    bits_per_byte: float
    perplexity: float
    """Per token."""
    n_tokens: int


def hardness(reading: Reading, ids: Sequence[int], progress: Callable[[], None]) -> Perplexity:
    """How hard a checkpoint finds the passage.

    Args:
        reading: its forward pass.
        ids: the passage in its tokens, BOS first.
        progress: called after each layer.
    """
    tokens = torch.tensor(ids)
    logits = reading.logits(reading.hidden(tokens, progress)[:-1])
    nats = F.cross_entropy(logits.double(), tokens[1:].to(logits.device), reduction="sum").item()
    n_bytes, n_predicted = len(PASSAGE.encode()), len(ids) - 1
    mean = nats / n_predicted
    return Perplexity(nats / math.log(2) / n_bytes, math.exp(mean) if mean < 700 else math.inf, n_predicted)


def completion(
    reading: Reading, ids: Sequence[int], n: int, progress: Callable[[], None] = lambda: None
) -> list[int]:
    """The likeliest ``n`` tokens after ``ids``, one at a time; every one reads all weights anew."""
    said = list(ids)
    for _ in range(n):
        hidden = reading.hidden(torch.tensor(said), progress)
        said.append(int(reading.logits(hidden[-1:])[0].argmax()))
    return said[len(ids) :]
