"""Models from and to a Hugging Face hub, each only when it is asked for."""

import os
import pathlib

from rlhf_jax.runtime.errors import InputError

# Subfolders and "consolidated" files hold the same weights in other layouts.
_WANTED, _UNWANTED = ["*.safetensors", "*.json", "*.jinja"], ["*/*", "consolidated*"]
_SENT = [*_WANTED, "*.md"]


def download(name: str, revision: str | None) -> str:
    """Downloads a repository of the Hugging Face hub; returns its folder in the hub's cache.

    Raises:
      InputError: the download fails, or the repository has no safetensors.
    """
    import huggingface_hub
    import huggingface_hub.errors

    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED
        )
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise InputError(f"{name} cannot be downloaded from the Hugging Face hub: {_reason(error)}") from error
    if not any(pathlib.Path(folder).glob("*.safetensors")):
        raise InputError(
            f"{name} has no safetensors on the hub, and pickles are not read; where you trust it, and transformers is "
            f'installed, convert it once: python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{name}').save_pretrained('DIR')\""
        )
    return folder


def upload(folder: str | os.PathLike, name: str, private: bool, message: str) -> str:
    """Uploads the files of a model folder to a repository of the hub, which is made if it does not exist.

    Of the folder, config.json and the other settings, the tensors, the tokenizer and the card are sent, and nothing else.

    Args:
      folder: the model folder.
      name: the repository, "owner/name" or "name".
      private: whether a repository that is made now is private.
      message: of the commit.

    Returns:
      The address of the repository.

    Raises:
      InputError: the upload fails; what the repository had is unchanged.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        made = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            allow_patterns=_SENT,
            ignore_patterns=_UNWANTED,
            commit_message=message,
        )
    except Exception as error:
        # Errors of the connection are those of the library by which huggingface_hub connects: httpx, or a successor.
        if not isinstance(error, OSError | ValueError) and not type(error).__module__.startswith("httpx"):
            raise
        status = getattr(getattr(error, "response", None), "status_code", None)
        login = (
            "; log in with `hf auth login`, or set HF_TOKEN to a token that may write" if status in (401, 403) else ""
        )
        raise InputError(f"{name} cannot be uploaded to the Hugging Face hub: {_reason(error)}{login}") from error
    return made.url


def _reason(error: Exception) -> str:
    """Returns the first line of an error's message."""
    said = str(error).strip().splitlines() or [type(error).__name__]
    return said[0].rstrip(".")
