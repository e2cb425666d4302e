"""The *logits* level and generation: which tokens run where, and what is said of it."""

from __future__ import annotations

import torch

from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.errors import LlamaConvertError
from llama_convert.findings import Finding
from llama_convert.verification.context import Context, Outcome, SkippedError, lacking
from llama_convert.verification.inputs import Checkpoint
from llama_convert.verification.model_comparison import check_logits
from llama_convert.verification.passage import MAX_BITS_PER_BYTE, PASSAGE
from llama_convert.verification.perplexity import completion, hardness
from llama_convert.verification.streamed_model import open_reading, pick_device
from llama_convert.verification.text_tokenizer import Words, open_text_tokenizer


def check_logits_level(context: Context) -> Outcome:
    """Run both sides and compare, or without a source see whether the output speaks."""
    output, source = context.opened(whole=True)
    return _compared(context, output, source) if source else _alone(context, output)


def _compared(context: Context, output: Checkpoint, source: Checkpoint) -> Outcome:
    device = pick_device(context.options.device)
    tokens = _tokens(context, min(output.config.vocab_size, source.config.vocab_size))
    n_layers = min(output.config.n_layers, source.config.n_layers)
    per_layer = sum(weight.nbytes for weight in output.weights.values()) // n_layers
    with context.progress(per_layer * n_layers, "Running"):
        findings, measures = check_logits(
            source, output, tokens, device, context.compute, lambda: context.observer.advance(per_layer)
        )
    if not measures:
        return "nothing could be run: the sides differ in size", findings, {}
    summary = (
        f"{len(tokens)} tokens at positions up to {measures['positions'][-1]:,}, {device}, "
        f"{context.compute}: KL at most {measures['max_kl']:.1e}, top-1 agreement "
        f"{measures['top1_agreement']:.1%}, logits within {measures['max_logit_difference']:.1e}"
    )
    return summary, findings, measures


def _tokens(context: Context, vocab_size: int) -> torch.Tensor:
    """The ids to run: the passage where there is a tokenizer, chance elsewhere."""
    n = context.options.n_positions
    for side in context.sides:
        words = open_text_tokenizer(side)
        if words is None:
            continue
        try:
            ids = (words.encode(PASSAGE) * n)[:n]
        except LlamaConvertError:  # the tokenizer level says what is wrong with it
            continue
        if max(ids) < vocab_size:
            return torch.tensor(ids)
    return torch.randint(0, vocab_size, (n,), generator=torch.Generator().manual_seed(0))


def _alone(context: Context, output: Checkpoint) -> Outcome:
    words = open_text_tokenizer(context.output)
    if words is None:
        raise SkippedError("there is no tokenizer to read a text with, and no source to compare with")
    ids = words.encode(PASSAGE)
    if max(ids) >= output.config.vocab_size:
        message = f"gives id {max(ids)}, the embedding has {output.config.vocab_size} rows"
        return "", [Finding("TOKENIZER_MISMATCH", message, file="tokenizer.json")], {}
    device = pick_device(context.options.device)
    per_layer = sum(weight.nbytes for weight in output.weights.values()) // output.config.n_layers
    with context.progress(per_layer * output.config.n_layers, "Running"), SourceFiles() as files:
        reading = open_reading(output, files, device, getattr(torch, context.compute.name))
        found = hardness(reading, ids, lambda: context.observer.advance(per_layer))
    measures = {
        "bits_per_byte": found.bits_per_byte,
        "perplexity": found.perplexity,
        "limit": MAX_BITS_PER_BYTE,
    }
    figures = f"{found.bits_per_byte:.2f} bits per byte (perplexity {found.perplexity:.1f} per token)"
    summary = f"simple English costs it {figures}; limit {MAX_BITS_PER_BYTE}"
    if found.bits_per_byte <= MAX_BITS_PER_BYTE:
        return summary, [], measures
    finding = Finding(
        "DOES_NOT_SPEAK",
        f"it finds simple English hard: {figures}",
        expected=f"at most {MAX_BITS_PER_BYTE} bits per byte",
        found=f"{found.bits_per_byte:.2f}",
        hint="scrambled weights, a wrong tokenizer, or a model that never learnt English: --source tells",
    )
    return summary, [finding], measures


def completions(context: Context) -> dict[str, str]:
    """What each side says after the prompt; nothing where there is none, or no tokenizer."""
    if context.options.prompt is None:
        return {}
    device, result = pick_device(context.options.device), {}
    for name, side in zip(("output", "source"), context.sides, strict=False):
        words = open_text_tokenizer(side)
        if words is None or side.checkpoint is None or lacking(side.checkpoint):
            continue
        ids = words.encode(context.options.prompt)
        with SourceFiles() as files:
            reading = open_reading(side.checkpoint, files, device, getattr(torch, context.compute.name))
            said = completion(reading, ids, context.options.max_new_tokens)
        result[name] = _added_text(words, ids, said)
    return result


def _added_text(words: Words, ids: list[int], said: list[int]) -> str:
    """What was said after the prompt; decoded with it, for the sake of spaces."""
    whole, prompt = words.decode([*ids, *said]), words.decode(ids)
    return whole[len(prompt) :] if whole.startswith(prompt) else words.decode(said)
