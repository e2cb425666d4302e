"""Greedy completions of a prompt by output and source."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from llama_convert.checkpoints.source import Checkpoint
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.verification.context import Context, missing_weights
from llama_convert.verification.sandbox import IsolatedTokenizer
from llama_convert.verification.streamed_model import StreamedModel, bytes_per_layer, open_model, pick_device


def completions(context: Context, prompt: str) -> dict[str, str]:
    """Text that output and source generate after a prompt; without a tokenizer a checkpoint is left out.

    Raises:
        InputError: a tokenizer or a file with weights is damaged.
        OutputError: a file could not be read.
    """
    device, result = pick_device(context.options.device), {}
    for name, each in zip(("output", "source"), context.inputs, strict=False):
        checkpoint = each.checkpoint
        if each.tokenizer and checkpoint and not missing_weights(checkpoint):
            tokenizer = IsolatedTokenizer(each.tokenizer)
            result[name] = _completion(context, checkpoint, tokenizer, device, prompt)
    return result


def _completion(
    context: Context,
    checkpoint: Checkpoint,
    tokenizer: IsolatedTokenizer,
    device: torch.device,
    prompt: str,
) -> str:
    n_tokens, per_layer = context.options.max_new_tokens, bytes_per_layer(checkpoint)
    ids = tokenizer.encode(prompt)
    total = per_layer * checkpoint.config.n_layers * n_tokens
    with context.progress(total, "Generating"), SourceFiles() as files:
        model = open_model(checkpoint, files, device, getattr(torch, context.compute.name))
        generated = complete(model, ids, n_tokens, lambda: context.observer.advance(per_layer))
    return _text_after(tokenizer, ids, generated)


def complete(
    model: StreamedModel, ids: Sequence[int], n: int, progress: Callable[[], None] = lambda: None
) -> list[int]:
    """The ``n`` most likely tokens after ``ids``, one at a time; each token reads all weights.

    Args:
        model: the forward pass of a checkpoint.
        ids: the prompt, BOS first.
        n: number of tokens to generate.
        progress: called after each layer.
    """
    result = list(ids)
    for _ in range(n):
        hidden = model.hidden(torch.tensor(result), progress)
        result.append(int(model.logits(hidden[-1:])[0].argmax()))
    return result[len(ids) :]


def _text_after(tokenizer: IsolatedTokenizer, ids: list[int], generated: list[int]) -> str:
    """The generated text, decoded together with the prompt so that spaces are kept."""
    whole, prompt = tokenizer.decode([*ids, *generated]), tokenizer.decode(ids)
    return whole[len(prompt) :] if whole.startswith(prompt) else tokenizer.decode(generated)
