"""The options of all commands, each described once.  `X | None` defaults are told from the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

_OUTPUT = "Output"
_RELEASE = "What the files are (detected from the files when left out)"
_CHAT = "Tokenizer and chat"
_COMPATIBLE = "Of the Hugging Face script"
_LOOKING = "What is looked at"
_FORWARD = "Forward pass"
_MANY = "Many machines"
_RUNNING = "Running"


def _one_of(*words: str) -> Callable[[str], list[str]]:
    """What a shell offers for an option's value."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


Source = Annotated[
    str | None,
    typer.Argument(
        metavar="SRC",
        show_default=False,
        help="Meta's folder: params.json and consolidated.NN.pth; for `--to meta` Hugging Face's. Or a URL.",
    ),
]
AnySource = Annotated[
    str | None, typer.Argument(metavar="SRC", show_default=False, help="A folder in either layout.")
]
Destination = Annotated[
    str | None,
    typer.Argument(metavar="DST", show_default=False, help="The folder to make, or a URL such as s3://b/x."),
]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="TYPE",
        autocompletion=_one_of("auto", "bf16", "fp16", "fp32"),
        help="auto (the source's own), bf16, fp16 or fp32.",
        rich_help_panel=_OUTPUT,
    ),
]
MaxShardSize = Annotated[
    str,
    typer.Option(
        metavar="SIZE",
        help="Bytes of tensors in one file at most, such as 5GB or 500MB.",
        rich_help_panel=_OUTPUT,
    ),
]
To = Annotated[
    str,
    typer.Option(
        metavar="hf|meta",
        autocompletion=_one_of("hf", "meta"),
        help="The layout to convert to.",
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
        help="Tensor-parallel ranks to cut Meta's layout into; 1 with `--to meta`.",
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
        help="The axis on which ranks cut the embedding; the release's own by default: "
        "1 up to Llama 2, 0 from Llama 3 on.",
        rich_help_panel=_OUTPUT,
    ),
]
Checklist = Annotated[
    bool,
    typer.Option(
        help="Write checklist.chk into Meta's layout; its MD5s take another pass over the files.",
        rich_help_panel=_OUTPUT,
    ),
]
CompareChecklist = Annotated[
    bool,
    typer.Option(
        "--compare-checklist",
        help="Hold SRC against the MD5s of its checklist.chk first, which reads it once more.",
        rich_help_panel=_OUTPUT,
    ),
]
NewShardSize = Annotated[
    str | None,
    typer.Option(
        "--max-shard-size",
        metavar="SIZE",
        show_default=False,
        help="Bytes of tensors in one file of Hugging Face's layout at most, such as 2GB.",
        rich_help_panel=_OUTPUT,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        help="Go on from what an earlier run of the same command has left; or start over.",
        rich_help_panel=_OUTPUT,
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the model that DST holds.", rich_help_panel=_OUTPUT)
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="Publish nothing if there was a warning (exit code 1).", rich_help_panel=_OUTPUT
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Say what would be written, and write nothing.", rich_help_panel=_OUTPUT),
]
LlamaVersion = Annotated[
    str | None,
    typer.Option(
        metavar="VERSION",
        autocompletion=_one_of("1", "2", "code", "3", "3.1", "3.2", "3.3", "Guard-1", "Guard-2", "Guard-3"),
        show_default=False,
        help="1, 2, code, 3, 3.1, 3.2, 3.3, Guard-1, Guard-2 or Guard-3; chooses where files allow several.",
        rich_help_panel=_RELEASE,
    ),
]
Instruct = Annotated[
    bool | None,
    typer.Option(
        "--instruct/--no-instruct",
        show_default=False,
        help="A chat model or a base model; a folder's name that says Instruct or chat is taken as a hint.",
        rich_help_panel=_RELEASE,
    ),
]
TokenizerPath = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer",
        metavar="PATH",
        show_default=False,
        help="tokenizer.model, where it is neither in SRC nor one folder up.",
        rich_help_panel=_CHAT,
    ),
]
ChatTemplate = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        show_default=False,
        help="A Jinja chat template to store instead of ours.",
        rich_help_panel=_CHAT,
    ),
]
SpecialTokens = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAMES",
        show_default=False,
        help="Names of Llama 3's special tokens from the first on, separated by commas.",
        rich_help_panel=_CHAT,
    ),
]
InputDir = Annotated[
    str | None,
    typer.Option(metavar="SRC", show_default=False, help="The same as SRC.", rich_help_panel=_COMPATIBLE),
]
OutputDir = Annotated[
    str | None,
    typer.Option(metavar="DST", show_default=False, help="The same as DST.", rich_help_panel=_COMPATIBLE),
]
ModelSize = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        show_default=False,
        help="Compared with the files; picks SRC/SIZE where SRC holds several; "
        "tokenizer_only converts just the tokenizer.",
        rich_help_panel=_COMPATIBLE,
    ),
]
NumShards = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        show_default=False,
        help="Compared with the number of rank files.",
        rich_help_panel=_COMPATIBLE,
    ),
]
SafeSerialization = Annotated[
    bool,
    typer.Option(help="Always so: only safetensors are written.", rich_help_panel=_COMPATIBLE, hidden=True),
]
PushToHub = Annotated[
    bool,
    typer.Option(
        "--push-to-hub",
        help="Upload DST as a private repository of its name (needs the extra \\[hub]).",
        rich_help_panel=_COMPATIBLE,
    ),
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify",
        help="Verify the output against SRC afterwards, as `verify DST --source SRC` does.",
        rich_help_panel=_OUTPUT,
    ),
]
Checked = Annotated[
    str | None,
    typer.Argument(metavar="PATH", show_default=False, help="The folder to look at, in either layout."),
]
Against = Annotated[
    str | None,
    typer.Option(
        "--source",
        metavar="ORIGINAL",
        show_default=False,
        help="The folder that PATH was made from, in either layout.",
        rich_help_panel=_LOOKING,
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
        rich_help_panel=_LOOKING,
    ),
]
Levels = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CHECK",
        autocompletion=_one_of("structure", "values", "weights", "tokenizer", "logits"),
        show_default=False,
        help="The former name of --check.",
        rich_help_panel=_LOOKING,
        hidden=True,
    ),
]
Checksums = Annotated[
    bool | None,
    typer.Option(
        "--checksums/--no-checksums",
        show_default=False,
        help="Hold every file, or none, against the published checksums of official files; by default "
        "those whose size is an official file's.",
        rich_help_panel=_LOOKING,
    ),
]
Prompt = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        show_default=False,
        help="Show how both sides go on from TEXT, the likeliest token each time.",
        rich_help_panel=_LOOKING,
    ),
]
MaxNewTokens = Annotated[
    int,
    typer.Option(
        min=1,
        max=4096,
        metavar="N",
        help="Tokens after the prompt; each reads all weights.",
        rich_help_panel=_LOOKING,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        autocompletion=_one_of("auto", "cpu", "cuda"),
        help="auto (a GPU if there is one), cpu, cuda or cuda:N.",
        rich_help_panel=_FORWARD,
    ),
]
ComputeDtype = Annotated[
    str,
    typer.Option(
        metavar="TYPE",
        autocompletion=_one_of("fp32", "bf16"),
        help="Arithmetic in fp32 or bf16.",
        rich_help_panel=_FORWARD,
    ),
]
Positions = Annotated[
    int,
    typer.Option(
        min=2,
        max=4096,
        metavar="N",
        help="Tokens to run, spread over the whole context length.",
        rich_help_panel=_FORWARD,
    ),
]
Report = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        show_default=False,
        help="Write one self-contained HTML page with plots.",
        rich_help_panel=_RUNNING,
    ),
]
Record = Annotated[
    bool,
    typer.Option(
        "--record",
        help="Write the result into PATH's model card and manifest, where a conversion made them.",
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
        help="Tensors in hand at a time.",
        rich_help_panel=_RUNNING,
    ),
]
BlockSize = Annotated[
    str,
    typer.Option(metavar="SIZE", help="Bytes read at a time by each worker.", rich_help_panel=_RUNNING),
]
ArrayTask = Annotated[
    str | None,
    typer.Option(
        metavar="I/N",
        show_default=False,
        help="Write only the Ith of N shares of the files; the last task finalizes the output.",
        rich_help_panel=_MANY,
    ),
]
Finish = Annotated[
    bool,
    typer.Option("--finish", help="Only publish what array tasks have written.", rich_help_panel=_MANY),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        show_default=False,
        help="Let the workers of a Dask scheduler write the files, such as tcp://host:8786 "
        "(needs the extra \\[dask]).",
        rich_help_panel=_MANY,
    ),
]
Fsync = Annotated[
    bool,
    typer.Option(
        "--fsync/--no-fsync",
        help="Wait until all is on disk; without, for scratch folders, a power cut may cost the output.",
        rich_help_panel=_RUNNING,
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Say only warnings and errors.", rich_help_panel=_RUNNING)
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show details.", rich_help_panel=_RUNNING)]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel=_RUNNING)]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.", rich_help_panel=_RUNNING)]
