"""The manifest, model card and NOTICE that a conversion adds to its output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_convert import __version__
from llama_convert.checkpoints.manifest import CARD, MANIFEST, file_record, manifest_json
from llama_convert.conversion.cast import CastCounts
from llama_convert.conversion.job import Job, OutputIdentity
from llama_convert.conversion.messages import Messages
from llama_convert.conversion.model_card import NOTICE, is_user_edited, notice, render
from llama_convert.conversion.plan import Plan
from llama_convert.conversion.staging import Staging
from llama_convert.conversion.write_report import WriteReport


class OutputManifest:
    """Computes the manifest of a job's output, and the files derived from it.

    Args:
        job: what is converted.
        identity: identifies the output.
        messages: its warnings are counted.
        source_md5s: MD5s of source files from a ``checklist.chk``.
        checklist_compared: whether the source files were verified against these MD5s.
    """

    def __init__(
        self,
        job: Job,
        identity: OutputIdentity,
        messages: Messages,
        source_md5s: Mapping[Path, str],
        *,
        checklist_compared: bool,
    ) -> None:
        self._job = job
        self._identity = identity
        self._messages = messages
        self._source_md5s = source_md5s
        self._checklist_compared = checklist_compared
        self._destination = Path(job.result.destination)

    def sources(self) -> list[dict[str, Any]]:
        """Return the entry of each source file."""
        entries = []
        for file in self._job.source_files:
            md5 = self._source_md5s.get(file)
            entries.append({"name": file.name, **file_record(file), **({"md5": md5} if md5 else {})})
        return entries

    def stage(self, staging: Staging, report: WriteReport) -> None:
        """Write the manifest, the model card and the NOTICE. A card that a user edited is kept."""
        content = self._content(report)
        names = [file.name for file in staging.files]
        for name, text in self._card_and_notice(content, names).items():
            staging.write(name, text)
        if is_user_edited(self._destination / CARD):
            self._messages.note(f"{self._destination / CARD}: Kept, because it was edited.")
            staging.remove(CARD)
        with staging.reading_staged_files():
            files = {file.name: file_record(file) for file in staging.files}
        staging.write(MANIFEST, manifest_json(content | {"files": files}))

    def estimated_sizes(self, plan: Plan) -> dict[str, int]:
        """Return the bytes of the files that `stage` writes, for a run without overflows."""
        placeholder, known = "0" * 32, self._job.result.files
        casts = {
            task.name: CastCounts(task.nbytes // task.dtype.itemsize) for task in plan.tasks if task.is_cast
        }
        hashes = {task.name: placeholder for task in plan.tasks if len(task.places) == 1}
        content = self._content(WriteReport(casts, hashes))
        texts = {name: len(text) for name, text in self._card_and_notice(content, list(known)).items()}
        files = {name: {"bytes": size, "xxh3_128": placeholder} for name, size in {**known, **texts}.items()}
        return texts | {MANIFEST: len(manifest_json(content | {"files": files}))}

    def _card_and_notice(self, content: Mapping[str, Any], names: Sequence[str]) -> dict[str, bytes]:
        """Return the model card and the license's notice, unless the output has such files."""
        texts, notice_text = {}, notice(content)
        if notice_text and not any(name.lower().startswith("notice") for name in names):
            texts[NOTICE] = notice_text
        if CARD not in names and not is_user_edited(self._destination / CARD):
            texts[CARD] = render(content, sorted([*names, *texts]))
        return texts

    def _content(self, report: WriteReport) -> dict[str, Any]:
        """Return the manifest without its list of files."""
        result, job = self._job.result, self._job
        is_meta = any(name.endswith(".pth") for name in job.weight_files)
        return {
            "tool": f"llama-convert {__version__}",
            "plan": self._identity.plan,
            "weights_plan": self._identity.weights,
            "layout": "meta" if is_meta else "huggingface",
            "release": result.release,
            "version": result.version,
            "size": result.size,
            "evidence": list(result.evidence),
            "alternatives": list(result.alternatives),
            "instruct": result.instruct,
            "dtype": result.dtype,
            "sources": self.sources(),
            "checklist_compared": self._checklist_compared,
            "warnings": len(self._messages.warnings),
            "casts": {name: counts.to_json() for name, counts in report.casts.items()},
            "tensors": report.hashes,
        }
