"""The *tokenizer* check: which files are compared, and how the result is reported."""

from __future__ import annotations

from typing import Any

from llama_convert.findings import Finding
from llama_convert.verification.context import Context, SkippedError
from llama_convert.verification.report import Outcome
from llama_convert.verification.sandbox import run_isolated
from llama_convert.verification.tokenizer.tokenizer_model import original_in


def check_tokenizer_files(context: Context) -> Outcome:
    """Compare the output's tokenizer with the original, or check it by itself if there is no original."""
    output, source = context.output, context.source
    vocab_size = output.checkpoint.config.vocab_size if output.checkpoint else None
    source_folder = source.folder if source and source.format == "huggingface" else None
    original = context.options.tokenizer or (source.tokenizer if source and not source_folder else None)
    if source_folder and not original:
        original = original_in(source_folder)
    result: dict[str, Any] | None = None
    if output.format == "meta":
        if output.tokenizer:
            result = run_isolated(
                "check_original", [output.tokenizer], vocab_size, source=original, folder=source_folder
            )
    elif original and output.tokenizer:
        result = run_isolated("compare_tokenizers", [original, output.folder], vocab_size)
    else:
        result = run_isolated("check_tokenizer", [output.folder], vocab_size)
    if result:
        findings = [Finding(**finding) for finding in result.pop("findings")]
        return Outcome(findings=findings, **result)
    in_source = original or (source.tokenizer if source else None)
    if in_source is None:
        raise SkippedError("No tokenizer found")
    file = "tokenizer.model" if output.format == "meta" else "tokenizer.json"
    message = f"The output has no tokenizer; the source has {in_source.name}."
    missing = Finding("TOKENIZER_MISSING", message, file, severity="warning")
    return Outcome("The output has no tokenizer", [missing])
