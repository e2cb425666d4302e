"""``--push-to-hub``: uploads the output to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from llama_convert.errors import OutputError
from llama_convert.observer import Observer


def upload(folder: Path, observer: Observer) -> None:
    """Upload a folder to a private model repository of the same name.

    Raises:
        OutputError: the Hub refused the upload or could not be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    observer.start(None, "Uploading to the Hub")
    try:
        repository = api.create_repo(folder.resolve().name, private=True, exist_ok=True).repo_id
        api.upload_folder(repo_id=repository, folder_path=folder)
    except Exception as error:
        hint = (
            f"The folder is complete. Upload it with: huggingface-cli upload {folder.resolve().name} {folder}"
        )
        raise OutputError("HUB_UPLOAD", f"Upload failed: {error}.", file=folder, hint=hint) from error
    finally:
        observer.finish()
    observer.note(f"Uploaded to {repository}.")
