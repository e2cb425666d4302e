"""The options of all commands, each described once. A default of None means: detected from the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from llama_convert.cli.command import print_all_help

_OUTPUT = "Output"
_RELEASE = "Release (detected from the files by default)"
_TOKENIZER = "Tokenizer and chat template"
_COMPATIBLE = "Compatibility with transformers' convert_llama_weights_to_hf.py"
_CHECKS = "Checks"
_FORWARD = "Forward pass"
_MACHINES = "Several machines"
_RUNNING = "Running"


def _one_of(*values: str) -> Callable[[str], list[str]]:
    """Shell completion of an option with these values."""
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


Source = Annotated[
    str | None,
    typer.Argument(
        metavar="SRC",
        show_default=False,
        help="Folder or URL of the checkpoint to convert: params.json and consolidated.NN.pth, "
        "or with `--to meta` config.json and *.safetensors.",
    ),
]
AnySource = Annotated[
    str | None,
    typer.Argument(
        metavar="SRC",
        show_default=False,
        help="Folder or URL of a checkpoint in Meta or Hugging Face format.",
    ),
]
Destination = Annotated[
    str | None,
    typer.Argument(
        metavar="DST", show_default=False, help="Folder to create, or a URL, for example s3://b/x."
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        "-o", "--output", metavar="DST", show_default=False, help="Same as DST.", rich_help_panel=_OUTPUT
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="TYPE",
        autocompletion=_one_of("auto", "bf16", "fp16", "fp32"),
        help="Data type of the output: bf16, fp16, fp32 or auto (as in SRC).",
        rich_help_panel=_OUTPUT,
    ),
]
MaxShardSize = Annotated[
    str,
    typer.Option(
        metavar="SIZE",
        help="Max size of the tensors in one safetensors file, for example 5GB or 500MB.",
        rich_help_panel=_OUTPUT,
    ),
]
To = Annotated[
    str,
    typer.Option(
        metavar="hf|meta",
        autocompletion=_one_of("hf", "meta"),
        help="Format of the output.",
        rich_help_panel=_OUTPUT,
    ),
]
Ranks = Annotated[
    int | None,
    typer.Option(
        "--mp",
        min=1,
        metavar="N",
        show_default=False,
        help="Number of tensor-parallel ranks, one .pth file each, of output in Meta format. 1 by default.",
        rich_help_panel=_OUTPUT,
    ),
]
EmbeddingAxis = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=1,
        metavar="N",
        show_default=False,
        help="Dimension along which ranks split the embedding. By default that of the release: "
        "1 up to Llama 2, 0 since Llama 3.",
        rich_help_panel=_OUTPUT,
    ),
]
Checklist = Annotated[
    bool,
    typer.Option(
        help="Write checklist.chk with the MD5s of output in Meta format, which are computed in another pass "
        "over the files.",
        rich_help_panel=_OUTPUT,
    ),
]
CompareChecklist = Annotated[
    bool,
    typer.Option(
        "--compare-checklist",
        help="First compare SRC with the MD5s in its checklist.chk, in another pass over the files.",
        rich_help_panel=_OUTPUT,
    ),
]
NewShardSize = Annotated[
    str | None,
    typer.Option(
        "--max-shard-size",
        metavar="SIZE",
        show_default=False,
        help="Max size of the tensors in one safetensors file, for example 2GB. For Hugging Face format.",
        rich_help_panel=_OUTPUT,
    ),
]
NewRanks = Annotated[
    int | None,
    typer.Option(
        "--mp",
        min=1,
        metavar="N",
        show_default=False,
        help="Number of tensor-parallel ranks, one .pth file each. For Meta format.",
        rich_help_panel=_OUTPUT,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        help="Resume an interrupted run of the same command, or start over.", rich_help_panel=_OUTPUT
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the model in DST.", rich_help_panel=_OUTPUT)
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="Treat warnings as errors: write no output, exit code 1.", rich_help_panel=_OUTPUT
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="List the files that would be written.", rich_help_panel=_OUTPUT),
]
LlamaVersion = Annotated[
    str | None,
    typer.Option(
        metavar="VERSION",
        autocompletion=_one_of("1", "2", "code", "3", "3.1", "3.2", "3.3", "Guard-1", "Guard-2", "Guard-3"),
        show_default=False,
        help="1, 2, code, 3, 3.1, 3.2, 3.3, Guard-1, Guard-2 or Guard-3. Needed only where the files match "
        "several.",
        rich_help_panel=_RELEASE,
    ),
]
Instruct = Annotated[
    bool | None,
    typer.Option(
        "--instruct/--no-instruct",
        show_default=False,
        help='Instruct model or base model. Detected from "instruct" or "chat" in the folder name.',
        rich_help_panel=_RELEASE,
    ),
]
TokenizerPath = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer",
        metavar="PATH",
        show_default=False,
        help="The tokenizer.model, if it is neither in SRC nor in its parent folder.",
        rich_help_panel=_TOKENIZER,
    ),
]
ConfigFrom = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        show_default=False,
        help="Folder with config.json or params.json and the tokenizer, for weights without them, "
        "for example a distributed checkpoint.",
    ),
]
SourceConfigFrom = Annotated[
    Path | None,
    typer.Option(
        "--config-from",
        metavar="FOLDER",
        show_default=False,
        help="Folder with config.json or params.json and the tokenizer of the source, or of PATH without a "
        "source, for weights without them.",
    ),
]
ChatTemplate = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        show_default=False,
        help="Jinja chat template to write instead of the built-in one.",
        rich_help_panel=_TOKENIZER,
    ),
]
SpecialTokens = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAMES",
        show_default=False,
        help="Names of Llama 3's special tokens, from the first on, separated by commas.",
        rich_help_panel=_TOKENIZER,
    ),
]
InputDir = Annotated[
    str | None,
    typer.Option(metavar="SRC", show_default=False, help="Same as SRC.", rich_help_panel=_COMPATIBLE),
]
OutputDir = Annotated[
    str | None,
    typer.Option(metavar="DST", show_default=False, help="Same as DST.", rich_help_panel=_COMPATIBLE),
]
ModelSize = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        show_default=False,
        help="Expected size, for example 8B. Selects SRC/SIZE if SRC has several checkpoints. "
        "tokenizer_only converts the tokenizer alone.",
        rich_help_panel=_COMPATIBLE,
    ),
]
NumShards = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        show_default=False,
        help="Expected number of .pth files in SRC.",
        rich_help_panel=_COMPATIBLE,
    ),
]
SafeSerialization = Annotated[
    bool,
    typer.Option(
        help="Has no effect: only safetensors are written.", rich_help_panel=_COMPATIBLE, hidden=True
    ),
]
PushToHub = Annotated[
    bool,
    typer.Option(
        "--push-to-hub",
        help="Upload DST to a private repository of the same name. Needs the extra \\[hub].",
        rich_help_panel=_COMPATIBLE,
    ),
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify",
        help="Verify the output against SRC, like `llama-convert verify DST --source SRC`.",
        rich_help_panel=_OUTPUT,
    ),
]
Checked = Annotated[
    str | None,
    typer.Argument(
        metavar="PATH",
        show_default=False,
        help="Folder or URL of the checkpoint to verify, in Meta or Hugging Face format.",
    ),
]
Against = Annotated[
    str | None,
    typer.Option(
        "--source",
        metavar="ORIGINAL",
        show_default=False,
        help="Folder or URL of the checkpoint that PATH was made from, in either format.",
        rich_help_panel=_CHECKS,
    ),
]
Checks = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CHECK",
        autocompletion=_one_of("structure", "values", "weights", "tokenizer", "logits"),
        show_default=False,
        help="structure, values, weights, tokenizer or logits. Repeat the option or separate by commas. "
        "All by default.",
        rich_help_panel=_CHECKS,
    ),
]
Levels = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CHECK",
        autocompletion=_one_of("structure", "values", "weights", "tokenizer", "logits"),
        show_default=False,
        help="The former name of --check.",
        rich_help_panel=_CHECKS,
        hidden=True,
    ),
]
Checksums = Annotated[
    bool | None,
    typer.Option(
        "--checksums/--no-checksums",
        show_default=False,
        help="Compare all files, or none, with the published checksums of official files. By default only "
        "files with the size of an official file.",
        rich_help_panel=_CHECKS,
    ),
]
Prompt = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        show_default=False,
        help="Show how source and output complete TEXT (greedy decoding).",
        rich_help_panel=_CHECKS,
    ),
]
MaxNewTokens = Annotated[
    int,
    typer.Option(
        min=1,
        max=4096,
        metavar="N",
        help="Number of tokens to generate after the prompt. Each reads all weights once.",
        rich_help_panel=_CHECKS,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        autocompletion=_one_of("auto", "cpu", "cuda"),
        help="cpu, cuda, cuda:N or auto (a GPU if there is one).",
        rich_help_panel=_FORWARD,
    ),
]
ComputeDtype = Annotated[
    str,
    typer.Option(
        metavar="TYPE",
        autocompletion=_one_of("fp32", "bf16"),
        help="Data type of the arithmetic: fp32 or bf16.",
        rich_help_panel=_FORWARD,
    ),
]
Positions = Annotated[
    int,
    typer.Option(
        min=2,
        max=4096,
        metavar="N",
        help="Number of tokens, at positions spread over the whole context length.",
        rich_help_panel=_FORWARD,
    ),
]
Report = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        show_default=False,
        help="Write a self-contained HTML report with plots.",
        rich_help_panel=_RUNNING,
    ),
]
Record = Annotated[
    bool,
    typer.Option(
        "--record",
        help="Write the result into PATH's model card and llama-convert.json.",
        rich_help_panel=_RUNNING,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=256,
        metavar="N",
        show_default=False,
        help="Number of parallel workers.",
        rich_help_panel=_RUNNING,
    ),
]
BlockSize = Annotated[
    str,
    typer.Option(metavar="SIZE", help="Bytes that a worker reads at a time.", rich_help_panel=_RUNNING),
]
ArrayTask = Annotated[
    str | None,
    typer.Option(
        metavar="I/N",
        show_default=False,
        help="Write only the Ith of N parts of the files. The last task finalizes the output.",
        rich_help_panel=_MACHINES,
    ),
]
Finish = Annotated[
    bool,
    typer.Option(
        "--finish", help="Only finalize the output that array tasks have written.", rich_help_panel=_MACHINES
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        show_default=False,
        help="Write the files on the workers of a Dask scheduler, for example tcp://host:8786. "
        "Needs the extra \\[dask].",
        rich_help_panel=_MACHINES,
    ),
]
Fsync = Annotated[
    bool,
    typer.Option(
        "--fsync/--no-fsync",
        help="Wait until all files are on disk. Without it, a power failure can lose the output.",
        rich_help_panel=_RUNNING,
    ),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print only warnings and errors.", rich_help_panel=_RUNNING),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print details.", rich_help_panel=_RUNNING)]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout.", rich_help_panel=_RUNNING)
]
Debug = Annotated[bool, typer.Option("--debug", help="Print tracebacks.", rich_help_panel=_RUNNING)]
HelpAll = Annotated[
    bool,
    typer.Option(
        "--help-all",
        callback=print_all_help,
        is_eager=True,
        expose_value=False,
        help="Show all options and exit.",
    ),
]
