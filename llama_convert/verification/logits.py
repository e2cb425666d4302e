"""The *logits* check: which tokens run, and how the result is reported."""

from __future__ import annotations

from typing import Any

import torch

from llama_convert.checkpoints.source import Checkpoint
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.errors import LlamaConvertError
from llama_convert.findings import Finding
from llama_convert.verification.context import Context, SkippedError
from llama_convert.verification.model_comparison import compare_models
from llama_convert.verification.perplexity import BUILTIN_TEXT, MAX_BITS_PER_BYTE, perplexity_of
from llama_convert.verification.report import Outcome
from llama_convert.verification.sandbox import IsolatedTokenizer
from llama_convert.verification.streamed_model import bytes_per_layer, open_model, pick_device


def check_logits(context: Context) -> Outcome:
    """Run output and source and compare them; without a source, measure the perplexity of the output."""
    output, source = context.opened(whole=True)
    return _against_source(context, output, source) if source else _perplexity(context, output)


def _against_source(context: Context, output: Checkpoint, source: Checkpoint) -> Outcome:
    device = pick_device(context.options.device)
    tokens = _tokens(context, min(output.config.vocab_size, source.config.vocab_size))
    n_layers = min(output.config.n_layers, source.config.n_layers)
    per_layer = sum(weight.nbytes for weight in output.weights.values()) // n_layers
    with context.progress(per_layer * n_layers, "Running"):
        findings, measures = compare_models(
            source, output, tokens, device, context.compute, lambda: context.observer.advance(per_layer)
        )
    _add_texts(context, measures.get("predictions", []))
    if not measures:
        return Outcome("Source and output have different shapes and cannot be compared", findings)
    summary = f"Max KL divergence {measures['max_kl']:.1e}, top-1 agreement {measures['top1_agreement']:.1%}"
    max_position, difference = measures["positions"][-1], measures["max_logit_difference"]
    how = f"{len(tokens)} tokens at positions up to {max_position:,} on {device} in {context.compute}"
    return Outcome(summary, findings, measures, f"{how}, max logit difference {difference:.1e}")


def _tokens(context: Context, vocab_size: int) -> torch.Tensor:
    """Token ids to run: the built-in text if there is a tokenizer, random ids otherwise."""
    n = context.options.n_positions
    for each in context.inputs:
        if each.tokenizer is None:
            continue
        try:
            ids = (IsolatedTokenizer(each.tokenizer).encode(BUILTIN_TEXT) * n)[:n]
        except LlamaConvertError:  # the tokenizer check reports it
            continue
        if max(ids) < vocab_size:
            return torch.tensor(ids)
    return torch.randint(0, vocab_size, (n,), generator=torch.Generator().manual_seed(0))


def _add_texts(context: Context, predictions: list[dict[str, Any]]) -> None:
    """Add the text of each id, ``token_text`` for ``token``, if a tokenizer can decode it."""
    names = ("token", "source_top1", "output_top1")
    ids = sorted({prediction[name] for prediction in predictions for name in names})
    for each in context.inputs:
        if each.tokenizer is None or not ids:
            continue
        try:
            texts = dict(zip(ids, IsolatedTokenizer(each.tokenizer).decode_each(ids), strict=True))
        except LlamaConvertError:  # the tokenizer check reports it
            continue
        for prediction in predictions:
            prediction |= {f"{name}_text": texts[prediction[name]] for name in names}
        return


def _perplexity(context: Context, output: Checkpoint) -> Outcome:
    file = context.output.tokenizer
    if file is None:
        raise SkippedError(
            "No tokenizer to encode the built-in text, and no source to compare with (--source)"
        )
    ids, n_rows = IsolatedTokenizer(file).encode(BUILTIN_TEXT), output.config.vocab_size
    if max(ids) >= n_rows:
        message = f"The tokenizer produces id {max(ids)}; the embedding has {n_rows} rows."
        finding = Finding("TOKENIZER_MISMATCH", message, file=file.name)
        return Outcome("The tokenizer does not fit the embedding", [finding])
    device, per_layer = pick_device(context.options.device), bytes_per_layer(output)
    with context.progress(per_layer * output.config.n_layers, "Running"), SourceFiles() as files:
        model = open_model(output, files, device, getattr(torch, context.compute.name))
        result = perplexity_of(model, ids, lambda: context.observer.advance(per_layer))
    measures = {
        "bits_per_byte": result.bits_per_byte,
        "perplexity": result.perplexity,
        "limit": MAX_BITS_PER_BYTE,
    }
    summary = f"{result.bits_per_byte:.2f} bits per byte on the built-in text (limit {MAX_BITS_PER_BYTE})"
    how = f"{result.n_tokens} tokens on {device} in {context.compute}"
    details = f"{how}, perplexity {result.perplexity:.1f} per token"
    findings = [] if result.bits_per_byte <= MAX_BITS_PER_BYTE else [_high_perplexity(result.bits_per_byte)]
    return Outcome(summary, findings, measures, details)


def _high_perplexity(bits_per_byte: float) -> Finding:
    return Finding(
        "HIGH_PERPLEXITY",
        "Perplexity of the built-in English text is too high.",
        expected=f"at most {MAX_BITS_PER_BYTE} bits per byte",
        found=f"{bits_per_byte:.2f} bits per byte",
        hint="The weights are scrambled, the tokenizer is wrong, or the model was not trained on English. "
        "Pass --source ORIGINAL to compare the weights.",
    )
