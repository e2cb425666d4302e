"""Perplexity of a built-in text in simple English, which every trained language model predicts well.

Measured in bits per byte: the negative log-likelihood of the text, without the BOS before it, divided by its
length in UTF-8.  Unlike perplexity per token it does not depend on the tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from llama_convert.verification.streamed_model import StreamedModel

BUILTIN_TEXT = (
    "One day a little girl named Lily went to the park with her mom. "  # style: said
    "She saw a big red ball in the grass. "
    'Lily was very happy and she wanted to play with the ball. A boy came and said, "That is my ball." '
    'Lily said, "I am sorry. Can we play together?" The boy smiled and said yes. They played all day, and '
    'they had a lot of fun. When the sun went down, her mom said, "It is time to go home." Lily said '
    "goodbye to her new friend. She went home, had dinner, and went to bed. She was happy to have a friend."
)

MAX_BITS_PER_BYTE = 1.5
"""Limit for a trained model.

An untrained model needs log2(vocabulary size) bits per token, which is 3.5 to 4 bits per byte with the
tokenizer of any Llama; one whose Q/K weights are scrambled needs about as many.  A trained model needs one
bit per byte of English or less, even the smallest (0.69 with 260 thousand parameters).  The geometric mean
of both is 1.5 to 2.
"""


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of the built-in text."""

    bits_per_byte: float
    perplexity: float
    """Per token."""
    n_tokens: int


def perplexity_of(
    model: StreamedModel, ids: Sequence[int], progress: Callable[[], None] = lambda: None
) -> Perplexity:
    """Perplexity of the built-in text.

    Args:
        model: the forward pass of a checkpoint.
        ids: the built-in text as token ids, BOS first.
        progress: called after each layer.
    """
    tokens = torch.tensor(ids)
    logits = model.logits(model.hidden(tokens, progress)[:-1])
    nats = F.cross_entropy(logits.double(), tokens[1:].to(logits.device), reduction="sum").item()
    n_bytes, n_predicted = len(BUILTIN_TEXT.encode()), len(ids) - 1
    mean = nats / n_predicted
    return Perplexity(nats / math.log(2) / n_bytes, math.exp(mean) if mean < 700 else math.inf, n_predicted)
