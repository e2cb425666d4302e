"""Meta's files do not always tell their release; of two checkpoints, one can settle what the other is.

A release decides what ``params.json`` leaves out: the factor of RoPE and the context length.
"""

from __future__ import annotations

from dataclasses import replace

from llama_convert.checkpoints.manifest import MANIFEST
from llama_convert.checkpoints.manifest_check import recorded_version
from llama_convert.checkpoints.meta import MetaCheckpoint
from llama_convert.llama.releases import Release
from llama_convert.verification.context import config_file, declared_config
from llama_convert.verification.inputs import Input


def agreed(output: Input, source: Input) -> tuple[Input, Input, list[str]]:
    """Both checkpoints, each as the release that the conversion assumed, if its files allow that.

    The manifest of the output names the release; without one, the settings of the other checkpoint tell.

    Returns:
        The output, the source, and a note for each that the default reads differently.
    """
    written = output.checkpoint.weights.values() if output.checkpoint else ()
    made_as = recorded_version(output.folder, written)
    source, about_source = _as_made(source, output, made_as)
    output, about_output = _as_made(output, source, made_as)
    return output, source, [note for note in (about_source, about_output) if note]


def _as_made(side: Input, other: Input, made_as: str | None) -> tuple[Input, str | None]:
    checkpoint = side.checkpoint
    if not isinstance(checkpoint, MetaCheckpoint) or not checkpoint.detected.alternatives:
        return side, None
    readings = checkpoint.detected.candidates
    release = next((row for row in readings if row.version == made_as), None)
    sign = f"{MANIFEST} says so"
    if release is None and other.checkpoint is not None:
        release = _fitting(checkpoint, other)
        sign = f"{config_file(other.checkpoint)} of {other.folder} agrees"
    if release is None or release is checkpoint.detected.release:
        return side, None
    read = checkpoint.as_release(release, sign)
    note = (
        f"{side.folder}: Assuming {read.detected.title} ({sign}) instead of {checkpoint.detected.title}. "
        "Use --llama-version to override."
    )
    return replace(side, checkpoint=read), note


def _fitting(checkpoint: MetaCheckpoint, other: Input) -> Release | None:
    """The reading that computes what the other checkpoint does, and has its context length if one does."""
    assert other.checkpoint is not None
    wanted = declared_config(other.checkpoint)
    configs = {row: checkpoint.as_release(row, "").config for row in checkpoint.detected.candidates}
    computing = [
        row
        for row, config in configs.items()
        if (config.rope_theta, config.rope_scaling) == (wanted.rope_theta, wanted.rope_scaling)
    ]
    same_length = [row for row in computing if configs[row].context_length == wanted.context_length]
    return next(iter(same_length or computing), None)
