"""``llama-convert verify``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from llama_convert.cli import options as cli

if TYPE_CHECKING:
    from llama_convert.verification.options import VerifyOptions


def verify_command(
    path: cli.Checked = None,
    source: cli.Against = None,
    check: cli.Checks = None,
    level: cli.Levels = None,
    device: cli.Device = "auto",
    dtype: cli.ComputeDtype = "fp32",
    positions: cli.Positions = 64,
    checksums: cli.Checksums = None,
    prompt: cli.Prompt = None,
    max_new_tokens: cli.MaxNewTokens = 16,
    report: cli.Report = None,
    record: cli.Record = False,
    llama_version: cli.LlamaVersion = None,
    config_from: cli.SourceConfigFrom = None,
    tokenizer: cli.TokenizerPath = None,
    quiet: cli.Quiet = False,
    verbose: cli.Verbose = False,
    as_json: cli.AsJson = False,
    debug: cli.Debug = False,
    help_all: cli.HelpAll = False,
) -> None:
    """Check a checkpoint, by itself or against its source. The exit code is 1 if a check fails.

    PATH may be in Meta or Hugging Face format. The checks, the cheapest first:

      [bold]structure[/bold]  files, names, shapes, dtypes, index, hyper-parameters

      [bold]values[/bold]     checksums, replicas on the ranks, NaN and infinities

      [bold]weights[/bold]    every tensor, compared exactly with the source

      [bold]tokenizer[/bold]  tokens, merges and difficult texts, compared with the original

      [bold]logits[/bold]     forward passes of source and output, compared layer by layer

    Without --source, weights is skipped and logits measures the perplexity of a built-in text.

    [bold]Examples[/bold]

      llama-convert verify llama-3.1-8b-instruct --source Llama3.1-8B-Instruct

      llama-convert verify Llama3.1-8B-Instruct

      llama-convert verify out --source in --check logits --report out.html

      llama-convert verify out --source in --prompt "Once upon a time" --json
    """
    from llama_convert.cli.errors import handle_errors, print_json, stderr_console

    with handle_errors(as_json=as_json, debug=debug):
        from llama_convert.checkpoints.suggestions import existing_folder, tokenizer_named
        from llama_convert.cli.report_file import check_report_file, write_verification
        from llama_convert.cli.verify_report import VerifyDisplay, print_results
        from llama_convert.conversion.verification_record import record_verification, require_manifest
        from llama_convert.errors import UsageError
        from llama_convert.json_output import envelope, to_json
        from llama_convert.verification.options import VerifyOptions, parse_checks
        from llama_convert.verification.verify import verify

        if path is None:
            hint = "Run: llama-convert verify PATH --source ORIGINAL"
            raise UsageError("BAD_USAGE", "PATH is missing.", hint=hint)
        options = VerifyOptions(
            checks=parse_checks([*(check or []), *(level or [])]),
            device=device,
            dtype=dtype,
            n_positions=positions,
            checksums=checksums,
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            llama_version=llama_version,
            config_from=config_from and existing_folder(config_from),
            tokenizer=tokenizer and tokenizer_named(tokenizer),
        )
        _refuse_unused(options)
        report_file = report and report.expanduser()
        if report_file:
            check_report_file(report_file)
        if record:
            require_manifest(path)
        with VerifyDisplay(stderr_console(), quiet=quiet or as_json, verbose=verbose) as display:
            result = verify(path, source, options, display)
            if record:
                record_verification(path, result.abstract)
            if report_file:
                display.show("Writing the report")
                write_verification(result, options, report_file)
        if as_json:
            exit_code = 0 if result.ok else 1
            print_json(envelope("verify", exit_code, to_json(result)))
        else:
            print_results(result, quiet=quiet, verbose=verbose)
        if not result.ok:
            raise typer.Exit(1)


def _refuse_unused(options: VerifyOptions) -> None:
    """Refuse options that would have no effect.

    Raises:
        UsageError: an option was given but no forward pass runs, or a limit of tokens without a prompt.
    """
    from llama_convert.errors import UsageError
    from llama_convert.verification.report import Check

    flags = options.of_forward_passes
    if flags and Check.LOGITS not in options.selected:
        raise UsageError("BAD_USAGE", f"{flags[0]} only applies to the logits check. Add --check logits.")
    if "--max-new-tokens" in flags and options.prompt is None:
        raise UsageError("BAD_USAGE", "--max-new-tokens only applies with --prompt TEXT.")
