"""Preparation of a conversion from Meta to Hugging Face format."""

from __future__ import annotations

import re
from pathlib import Path

from llama_convert.checkpoints.huggingface_config import config_json, eos_ids, generation_config_json
from llama_convert.checkpoints.meta import MetaCheckpoint, open_meta
from llama_convert.checkpoints.meta_folder import MetaFolder
from llama_convert.checkpoints.params import read_params
from llama_convert.conversion.auxiliary_files import copy_files, license_files
from llama_convert.conversion.disk import output_error
from llama_convert.conversion.huggingface_plan import plan_huggingface
from llama_convert.conversion.job import Job
from llama_convert.conversion.messages import (
    Messages,
    report_alternatives,
    report_detection,
    warn_of_missing_head,
)
from llama_convert.conversion.options import ConvertOptions, ConvertResult
from llama_convert.conversion.plan import Plan
from llama_convert.conversion.staging import Staging
from llama_convert.dtypes import parse_weight_dtype
from llama_convert.errors import InputError, UsageError
from llama_convert.formats.files import read_small
from llama_convert.llama.releases import DetectedRelease, ReleaseTraits, detect_release, parse_version
from llama_convert.tokenizers import (
    Tokenizer,
    TokenizerOptions,
    TokenizerReport,
    chat_template,
    convert_tokenizer,
    open_tokenizer,
    special_tokens,
)
from llama_convert.units import parse_size

TOKENIZER_ONLY = "tokenizer_only"
_MAX_TEMPLATE = 1 << 20
_TOKENIZER_OPTIONS = ("special_tokens", "chat_template")
_TOKENIZER_SPACE = 64 << 20
"""Bytes reserved for the tokenizer; the largest known tokenizer.json has 28 MB."""


def meta_to_huggingface(
    folder: MetaFolder, source: Path, destination: Path, options: ConvertOptions, messages: Messages
) -> Job:
    """Return the job that converts a Meta checkpoint to Hugging Face format.

    Raises:
        UsageError: an option is invalid.
        InputError: the source is missing, damaged, inconsistent or unsupported.
    """
    return _Conversion(source, destination, options, messages).job(folder)


def tokenizer_job(source: Path, destination: Path, options: ConvertOptions, messages: Messages) -> Job:
    """Return the job that converts the tokenizer only; raises as `meta_to_huggingface`."""
    return _Conversion(source, destination, options, messages).tokenizer_only()


class _Conversion:
    """The arguments of `meta_to_huggingface`, and the steps of the preparation."""

    def __init__(self, source: Path, destination: Path, options: ConvertOptions, messages: Messages) -> None:
        self.source = source
        self.destination = destination
        self.options = options
        self.messages = messages
        self.warn = messages.warn
        self.custom_template = _read_template(options.chat_template)

    def job(self, folder: MetaFolder) -> Job:
        """Return the prepared job."""
        options = self.options
        dtype = parse_weight_dtype(options.dtype)
        max_shard_size = parse_size(options.max_shard_size)
        tokenizer = self._tokenizer(folder)
        checkpoint = open_meta(folder, tokenizer.kind if tokenizer else None, options.llama_version)
        instruct, assumption = self._instruct(checkpoint.detected, folder)
        self._report(checkpoint, instruct, assumption)
        if checkpoint.note:
            self.messages.note(f"{folder.path}: {checkpoint.note}")
        self.messages.warn_each(checkpoint.warnings)
        self._compare_flags(checkpoint)
        self._check_vocabulary(checkpoint, tokenizer)
        plan = plan_huggingface(checkpoint, dtype, max_shard_size)
        warn_of_missing_head(checkpoint, self.messages)
        licenses = license_files(folder, self.messages)

        def write_small_files(staging: Staging) -> None:
            copy_files(licenses, staging)
            report = None
            if tokenizer:
                report = self._write_tokenizer(staging, tokenizer, checkpoint.detected, instruct)
            self._write_configs(staging, checkpoint, report, instruct)

        return Job(
            self.source,
            folder.path,
            plan,
            self._result(checkpoint.detected, instruct, (dtype or checkpoint.dtype).name, plan),
            [*folder.files, checkpoint.params.file],
            [*licenses, *([tokenizer.path] if tokenizer else [])],
            write_small_files,
            _TOKENIZER_SPACE if tokenizer else 0,
        )

    def tokenizer_only(self) -> Job:
        """Return the job that writes the tokenizer only."""
        folder = self.source if self.source.is_dir() else self.source.parent
        candidates = [folder / "tokenizer.model", folder / "original" / "tokenizer.model"]
        path = self.options.tokenizer or next((file for file in candidates if file.is_file()), candidates[0])
        tokenizer = self._open_tokenizer(path)
        self._warn_of_weight_options()
        identity = _identify_by_tokenizer(folder, tokenizer, self.options.llama_version)
        instruct, assumption = self._instruct(
            identity, MetaFolder(folder, (), path, (folder.resolve().name,), folder)
        )
        if assumption:
            self.messages.note(assumption)

        def write_small_files(staging: Staging) -> None:
            self._write_tokenizer(staging, tokenizer, identity, instruct)

        result = self._result(identity, instruct, None, None)
        return Job(
            self.source, self.source, None, result, [], [tokenizer.path], write_small_files, _TOKENIZER_SPACE
        )

    def _tokenizer(self, folder: MetaFolder) -> Tokenizer | None:
        path = self.options.tokenizer or folder.tokenizer
        if path is None:
            self._refuse_tokenizer_options("without a tokenizer", *_TOKENIZER_OPTIONS)
            self.warn(
                f"{folder.settings}: No tokenizer.model here or one folder up. The output has no tokenizer. "
                "Use --tokenizer PATH to add one."
            )
            return None
        return self._open_tokenizer(path)

    def _open_tokenizer(self, path: Path) -> Tokenizer:
        tokenizer = open_tokenizer(path)
        if not tokenizer.n_special:
            reason = f"with a {tokenizer.kind} tokenizer, whose file defines the special tokens"
            self._refuse_tokenizer_options(reason, "special_tokens")
        elif self.options.special_tokens:
            special_tokens("llama3.1", self.options.special_tokens)  # refuses invalid names
        if tokenizer.differing_text is not None:
            self.warn(
                f"{path}: tokenizer.json and {tokenizer.kind} give different ids for some texts, for "
                f"example {tokenizer.differing_text!r}. For exact ids, load the output with LlamaTokenizer "
                "of transformers 4, which reads tokenizer.model."
            )
        return tokenizer

    def _refuse_tokenizer_options(self, reason: str, *names: str) -> None:
        """Refuse options that would have no effect.

        Raises:
            UsageError: one of them is given.
        """
        for name in names:
            if getattr(self.options, name):
                flag = f"--{name.replace('_', '-')}"
                hint = f"Remove {flag}, or pass another tokenizer.model with --tokenizer PATH."
                raise UsageError("BAD_USAGE", f"{flag} has no effect {reason}.", hint=hint)

    def _warn_of_weight_options(self) -> None:
        """Warn of options without effect if no weights are written. Scripts may always pass them."""
        default = ConvertOptions()
        for name in ("dtype", "max_shard_size", "num_shards"):
            if getattr(self.options, name) != getattr(default, name):
                self.warn(f"--{name.replace('_', '-')} has no effect: {TOKENIZER_ONLY} writes no weights.")

    def _compare_flags(self, checkpoint: MetaCheckpoint) -> None:
        """Warn of flags that contradict the files; the files decide."""
        n_ranks, size = checkpoint.folder.n_ranks, checkpoint.detected.size
        model_size, num_shards = self.options.model_size, self.options.num_shards
        if num_shards is not None and num_shards != n_ranks:
            self.warn(f"--num-shards {num_shards} is ignored: the source has {n_ranks} shards.")
        if model_size is not None:
            label = re.sub(r"f$|-MP\d+$", "", model_size, flags=re.IGNORECASE)
            if size is None or label.upper() != size.label:
                self.warn(f"--model-size {model_size} is ignored: detected {checkpoint.detected.title}.")

    def _check_vocabulary(self, checkpoint: MetaCheckpoint, tokenizer: Tokenizer | None) -> None:
        if tokenizer is None:
            return
        rows, tokens = checkpoint.config.vocab_size, tokenizer.vocab_size
        message = f"Tokenizer has {tokens} tokens; the embedding has {rows} rows."
        if tokens > rows:
            raise InputError(
                "TOKENIZER_MISMATCH",
                message,
                file=tokenizer.path,
                hint="Pass the tokenizer of this checkpoint with --tokenizer PATH.",
            )
        if tokens < rows:
            self.warn(f"{tokenizer.path}: {message} The other rows are unused.")

    def _instruct(self, identity: DetectedRelease, folder: MetaFolder) -> tuple[bool, str | None]:
        """Return whether it is an instruct model, and the note to print if that is a guess.

        The flag decides, then the release, then the names of the folders.
        """
        if self.options.instruct is not None:
            return self.options.instruct, None
        if identity.release.instruct is not None:
            return identity.release.instruct, None
        names = [*folder.names, self.options.model_size or ""]
        for name in names:
            if re.search(r"instruct|chat|\db-?f\b", name, re.IGNORECASE):
                return True, f'Assuming an instruct model ("{name}"). Use --no-instruct to override.'
        return False, (
            'Assuming a base model (no "instruct" or "chat" in the folder name). Use --instruct to override.'
        )

    def _report(self, checkpoint: MetaCheckpoint, instruct: bool, assumption: str | None) -> None:
        """Report what was detected, then what was assumed."""
        identity, n_ranks, messages = checkpoint.detected, checkpoint.folder.n_ranks, self.messages
        report_detection(identity, n_ranks, checkpoint.dtype, messages, instruct=instruct)
        if n_ranks > 1:
            messages.detail(f"The embedding is split along dim {checkpoint.embedding_dim}.")
        if checkpoint.kv_repeats > 1:
            heads = checkpoint.config.n_kv_heads
            messages.detail(
                f"Each of {heads} KV heads is stored {checkpoint.kv_repeats} times. One copy is written."
            )
        if assumption:
            messages.note(assumption)
        if self.options.llama_version is None:
            report_alternatives(identity, messages)

    def _result(
        self, identity: DetectedRelease, instruct: bool, dtype: str | None, plan: Plan | None
    ) -> ConvertResult:
        sizes = plan.sizes if plan else {}
        return ConvertResult.of(self.destination, identity, sizes, dtype=dtype, instruct=instruct)

    def _write_tokenizer(
        self, staging: Staging, tokenizer: Tokenizer, identity: DetectedRelease, instruct: bool
    ) -> TokenizerReport:
        release = identity.release
        options = TokenizerOptions(
            special_names=release.special_tokens,
            special_tokens=self.options.special_tokens,
            instruct=instruct,
            chat_template=self._chat_template(identity, instruct),
            model_max_length=release.model_max_length,
        )
        try:
            return convert_tokenizer(tokenizer, staging.path, options)
        except OSError as error:
            raise output_error("Cannot write the file", error, staging.path / "tokenizer.json") from error

    def _chat_template(self, identity: DetectedRelease, instruct: bool) -> str | None:
        if self.custom_template is not None:
            return self.custom_template
        release = identity.release
        if not instruct or release.chat_template is None:
            return None
        if release.version == "code" and identity.size and identity.size.label == "70B":
            return chat_template("codellama-70b")
        return chat_template(release.chat_template)

    def _write_configs(
        self,
        staging: Staging,
        checkpoint: MetaCheckpoint,
        tokenizer: TokenizerReport | None,
        instruct: bool,
    ) -> None:
        release, config = checkpoint.detected.release, checkpoint.config
        dtype = parse_weight_dtype(self.options.dtype) or checkpoint.dtype
        if tokenizer:
            bos, eos = tokenizer.bos_id, tokenizer.eos_id
        else:  # Llama 3's special tokens have the last 256 ids
            bos, eos = (max(config.vocab_size - 256, 0), 0) if release.tokenizer == "tiktoken" else (1, 2)
        config_eos, generation_eos = eos_ids(release, instruct, bos, eos)
        staging.write("config.json", config_json(config, dtype, bos, config_eos))
        staging.write("generation_config.json", generation_config_json(release, bos, generation_eos))


def _read_template(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return read_small(file, _MAX_TEMPLATE).decode("utf-8")
    except InputError as error:
        raise UsageError("BAD_TEMPLATE", error.message, file=file) from None
    except UnicodeDecodeError:
        raise UsageError("BAD_TEMPLATE", "Not UTF-8 text.", file=file) from None


def _identify_by_tokenizer(folder: Path, tokenizer: Tokenizer, version: str | None) -> DetectedRelease:
    """Return the release by its tokenizer, for its special tokens only: there may be no weights."""
    version = parse_version(version).version if version else None
    params_file = folder / "params.json"
    names = folder.resolve().name.lower()
    scaled = version not in ("3", "Guard-2") and not re.search(r"llama[-_ ]?3(?!\.\d)|guard[-_ ]?2", names)
    params = read_params(params_file) if params_file.exists() else None
    traits = ReleaseTraits(
        shape=(0, 0, 0, 0, 0),
        vocab_size=tokenizer.vocab_size,
        norm_eps=params.norm_eps if params else 1e-5,
        rope_theta=params.rope_theta if params else None,
        use_scaled_rope=params.use_scaled_rope if params else scaled and tokenizer.kind == "tiktoken",
        tied=False,
        nested=params.nested if params else False,
        dtype="",
        tokenizer=tokenizer.kind,
        names=names,
    )
    return detect_release(traits, version)
