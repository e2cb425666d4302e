"""The *tokenizer* level: which tokenizers there are to look at, and what is said of them."""

from __future__ import annotations

from llama_convert.verification.context import Context, NotRunError, Outcome
from llama_convert.verification.isolated import run_isolated
from llama_convert.verification.report import Finding, at_most


def look_at_tokenizer(context: Context) -> Outcome:
    """Hold the output's tokenizer against the original, or look at the one there is by itself."""
    output = context.output
    vocab_size = output.checkpoint.config.vocab_size if output.checkpoint else None
    meta = context.source if context.source and context.source.layout == "meta" else None
    original = meta.tokenizer if meta else None
    if output.layout == "meta":
        paths = [output.tokenizer] if output.tokenizer else []
        check = run_isolated("check_original", paths, vocab_size) if paths else None
    elif original and output.tokenizer:
        check = run_isolated("compare_tokenizers", [original, output.folder], vocab_size)
    else:
        check = run_isolated("check_tokenizer", [output.folder], vocab_size)
    if check:
        findings = [Finding(**finding) for finding in check["findings"]]
        return check["summary"], at_most(findings), check["measures"]
    if original is None:
        raise NotRunError("there is no tokenizer here")
    missing = Finding("TOKENIZER_MISSING", f"the source has {original.name}", "tokenizer.json", warning=True)
    return "the output has none", [missing], {}
