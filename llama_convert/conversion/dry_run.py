"""Dry runs: the files that a conversion would write, with their sizes."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from llama_convert.checkpoints.checklist import CHECKLIST
from llama_convert.conversion.auxiliary_files import checklist_size
from llama_convert.conversion.job import Job
from llama_convert.conversion.messages import Messages
from llama_convert.conversion.options import ConvertOptions, ConvertResult
from llama_convert.conversion.output_manifest import OutputManifest
from llama_convert.conversion.staging import Staging
from llama_convert.conversion.work_units import ArrayTask


def dry_run(job: Job, options: ConvertOptions, messages: Messages, manifest: OutputManifest) -> ConvertResult:
    """Return the result with the files of the output and their sizes, without writing the output.

    Small files are written to a temporary folder. The sizes of the model card and the manifest are estimates:
    they contain counts that are known only once the weights are read.

    Raises:
        InputError, RefusedError: as the conversion, for problems found before weights are read.
    """
    result = job.result
    if options.array_task:
        files = ArrayTask.parse(options.array_task).select(job.weight_files)
        result.files = {file: result.files[file] for file in files}
        return result
    with (
        TemporaryDirectory(prefix="llama-convert-") as folder,
        Staging(Path(folder, "out"), overwrite=False, fsync=False, private=True) as staging,
    ):
        job.write_small_files(staging)
        result.files |= {file.name: file.stat().st_size for file in staging.files}
    messages.check_strict(options.strict)
    if job.plan:
        result.files |= {name: len(content) for name, content in job.plan.small_files.items()}
        if job.writes_checklist:
            result.files[CHECKLIST] = checklist_size(result.files)
        result.files |= manifest.estimated_sizes(job.plan)
    return result
