"""The *tokenizer* level: which tokenizers there are to look at, and what is said of them."""

from __future__ import annotations

from llama_convert.findings import Finding, at_most
from llama_convert.verification.context import Context, Outcome, SkippedError
from llama_convert.verification.sandbox import run_isolated
from llama_convert.verification.tokenizer.original import original_in


def check_tokenizer_files(context: Context) -> Outcome:
    """Compare the output's tokenizer with the original, or look at the one there is by itself."""
    output, source = context.output, context.source
    vocab_size = output.checkpoint.config.vocab_size if output.checkpoint else None
    huggingface = source.folder if source and source.layout == "huggingface" else None
    original = context.options.tokenizer or (source.tokenizer if source and not huggingface else None)
    if huggingface and not original:
        original = original_in(huggingface)
    check, wanted = None, original or (source.tokenizer if source else None)
    if output.layout == "meta":
        if output.tokenizer:
            check = run_isolated(
                "check_original", [output.tokenizer], vocab_size, source=original, folder=huggingface
            )
    elif original and output.tokenizer:
        check = run_isolated("compare_tokenizers", [original, output.folder], vocab_size)
    else:
        check = run_isolated("check_tokenizer", [output.folder], vocab_size)
    if check:
        findings = [Finding(**finding) for finding in check["findings"]]
        return check["summary"], at_most(findings), check["measures"]
    if wanted is None:
        raise SkippedError("there is no tokenizer here")
    file = "tokenizer.model" if output.layout == "meta" else "tokenizer.json"
    missing = Finding("TOKENIZER_MISSING", f"the source has {wanted.name}", file, severity="warning")
    return "the output has none", [missing], {}
