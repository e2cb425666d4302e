"""``--push-to-hub``, through huggingface_hub."""

from __future__ import annotations

from pathlib import Path

from llama_convert.errors import OutputError, UsageError
from llama_convert.observer import Observer


def require_hub() -> None:
    """Fail before any work is done if huggingface_hub is not installed.

    Raises:
        UsageError: it is not.
    """
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise UsageError(
            "EXTRA_MISSING",
            "--push-to-hub needs huggingface_hub",
            hint="pip install 'llama-convert[hub]'",
        ) from None


def push(folder: Path, observer: Observer) -> None:
    """Upload a converted folder as a private model repository of the folder's name.

    Raises:
        OutputError: the Hub refused or could not be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        repository = api.create_repo(folder.resolve().name, private=True, exist_ok=True).repo_id
        api.upload_folder(repo_id=repository, folder_path=folder)
    except Exception as error:
        raise OutputError(
            "HUB", f"upload failed: {error}", file=folder, hint="the folder itself is complete"
        ) from error
    observer.note(f"uploaded to {repository}")
