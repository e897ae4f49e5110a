"""Uploading what was saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luthier.core.errors import ConfigError
from luthier.core.log import first_line, logger

if TYPE_CHECKING:
    from pathlib import Path

_MESSAGE = "Saved with luthier"


def open_repository(repo_id: str, *, token: str | None, private: bool | None, revision: str | None = None) -> Any:
    """Return the hub's interface, with the repository made if it is not there: before anything is computed.

    Raises ConfigError without a token, and when the hub does not take the repository.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    token = token or huggingface_hub.get_token()
    if not token:
        raise ConfigError(
            f"uploading to {repo_id} needs a token: give token=..., set HF_TOKEN, or run `hf auth login`; nothing was "
            "computed",
            code="config_no_token",
        )
    api = huggingface_hub.HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        raise ConfigError(
            f"{repo_id} cannot be uploaded to: {first_line(error)}; nothing was computed", code="config_hub"
        ) from error
    return api


def upload(api: Any, repo_id: str, folder: Path, *, message: str | None = None, revision: str | None = None) -> str:
    """Upload the files of `folder` and return the address of the repository. Raises ConfigError when that fails."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.upload_folder(
            repo_id=repo_id, folder_path=str(folder), commit_message=message or _MESSAGE, revision=revision
        )
    except (HfHubHTTPError, OSError) as error:
        raise ConfigError(f"uploading to {repo_id} failed: {first_line(error)}", code="config_hub") from error
    address = f"https://huggingface.co/{repo_id}"
    logger.info("uploaded to %s", address)
    return address
