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
    tokenizer: cli.TokenizerPath = None,
    quiet: cli.Quiet = False,
    verbose: cli.Verbose = False,
    as_json: cli.AsJson = False,
    debug: cli.Debug = False,
    help_all: cli.HelpAll = False,
) -> None:
    """Find any way in which a checkpoint is wrong; exit code 1 if there is one.

    PATH may be in either layout.  Five levels are looked at, the cheapest first:

      [bold]structure[/bold]  files, names, shapes, dtypes, index, hyper-parameters

      [bold]values[/bold]     checksums, copies on the ranks, NaN and infinities

      [bold]weights[/bold]    every tensor against the source, bit for bit

      [bold]tokenizer[/bold]  against the original, on hard texts

      [bold]logits[/bold]     both sides run, each by its owner's definition

    Without a source, logits ask whether the model speaks.

    [bold]Examples[/bold]

      llama-convert verify llama-3.1-8b-instruct --source Llama3.1-8B-Instruct

      llama-convert verify Llama3.1-8B-Instruct

      llama-convert verify out --source in --level logits --report out.html

      llama-convert verify out --source in --prompt "Once upon a time" --json
    """
    from llama_convert.cli.errors import handle_errors, print_json, stderr_console

    console = stderr_console()
    with handle_errors(as_json=as_json, debug=debug):
        from llama_convert.checkpoints.suggestions import tokenizer_named
        from llama_convert.cli.progress import ConsoleObserver
        from llama_convert.cli.report_file import check_page_file, write_page
        from llama_convert.cli.verify_report import print_report
        from llama_convert.conversion.verification_record import record_verification, require_manifest
        from llama_convert.errors import UsageError
        from llama_convert.verification.options import VerifyOptions, parse_levels
        from llama_convert.verification.verify import verify

        if path is None:
            hint = "llama-convert verify PATH --source ORIGINAL; see llama-convert verify --help"
            raise UsageError("BAD_USAGE", "PATH is missing", hint=hint)
        options = VerifyOptions(
            levels=parse_levels(level),
            device=device,
            dtype=dtype,
            n_positions=positions,
            checksums=checksums,
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            llama_version=llama_version,
            tokenizer=tokenizer and tokenizer_named(tokenizer),
        )
        _check_used(
            options,
            {
                "--device": device != VerifyOptions.device,
                "--dtype": dtype != VerifyOptions.dtype,
                "--positions": positions != VerifyOptions.n_positions,
                "--prompt": prompt is not None,
                "--max-new-tokens": max_new_tokens != VerifyOptions.max_new_tokens,
            },
        )
        page = report and report.expanduser()
        if page:
            check_page_file(page)
        if record:
            require_manifest(path)
        observer = ConsoleObserver(console, quiet=quiet or as_json, verbose=verbose)
        result = verify(path, source, options, observer)
        if record:
            record_verification(path, result.abstract)
        if page:
            write_page(result, page)
        if as_json:
            exit_code = 0 if result.ok else 1
            print_json({"command": "verify", "exit_code": exit_code, **result.to_json()})
        else:
            print_report(result, quiet=quiet)
        if not result.ok:
            raise typer.Exit(1)


def _check_used(options: VerifyOptions, given: dict[str, bool]) -> None:
    """Refuse options that would do nothing.

    Raises:
        UsageError: one of those given is of the forward passes, which are not run, or lacks its prompt.
    """
    from llama_convert.errors import UsageError
    from llama_convert.verification.report import Level

    names = [name for name, is_given in given.items() if is_given]
    if names and Level.LOGITS not in options.levels:
        raise UsageError("BAD_USAGE", f"{names[0]} only applies to the logits. Add --level logits.")
    if given["--max-new-tokens"] and options.prompt is None:
        raise UsageError("BAD_USAGE", "--max-new-tokens only applies with --prompt TEXT.")
