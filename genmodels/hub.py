"""Where a saved model is: in a folder, in this package, or on the Hugging Face Hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from genmodels.reading import in_one_line, read_json
from genmodels.shipped import locate

FILES = ("config.json", "model.safetensors")
"""Files of a saved model, in the order in which they are downloaded."""
FURTHER = {
    "tokenizer": ("tokenizer.json",),
    "safety_checker": ("safety_checker.safetensors", "safety_checker.json"),
}
"""Further files of a model, by the setting that its config then has, or the config of a part of it."""
REFUSALS = (401, 403, 404)
"""Statuses by which the Hub says that a model is not there, or not for us."""
TIMEOUT = 5.0
"""Seconds to wait for the Hub to say whether it has a model."""


def folder_of(
    path_or_hub_id: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """Return the folder of a saved model, which is downloaded if it is on the Hub.

    A folder of this name is used first, then a model of this package. Another path that does not
    exist is refused at once. What can only be an id of the form user/name is looked up on the Hub
    once, and in the cache of the Hub if that does not answer.

    Args:
        path_or_hub_id: a folder, the name of a model of this package (toyfaces/vae), or the id of a
            repository on the Hub.
        revision, token, cache_dir, force_download, local_files_only: see `hf_hub_download` of
            huggingface_hub.

    Raises:
        ValueError: if there is no such folder or repository.
    """
    where = locate(os.path.expanduser(path_or_hub_id))
    if where.is_dir():
        return where
    if where.exists():
        raise ValueError(f"{where} is a file; a model is a folder")
    if not is_hub_id(path_or_hub_id):
        raise ValueError(f"{where}: no such model folder")
    name = str(path_or_hub_id)
    user = name.split("/")[0]
    if Path(user).exists():
        raise ValueError(f"{where}: no such model folder ({user} is a folder here, so the Hub was not asked)")
    try:
        return _download(name, revision, token, local_files_only, cache_dir=cache_dir, force_download=force_download)
    except Exception as error:  # the Hub client raises many types, which mean the same to the caller
        reason = in_one_line(error, 120)
        raise ValueError(f"{where}: no such folder here, and no such model on the Hub ({reason})") from None


def is_hub_id(name: str | Path) -> bool:
    """Return whether `name` can be the id of a repository, user/name."""
    text = str(name)
    parts = text.split("/")
    return (
        isinstance(name, str)
        and len(parts) == 2
        and all(parts)
        and not text.startswith((".", "~"))
        and "\\" not in text
    )


def _download(name: str, revision: str | None, token: str | bool | None, local_files_only: bool, **other: Any) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    unanswered = None
    if not local_files_only:
        try:  # hf_hub_download tries five times and prints a line for each
            get_hf_file_metadata(hf_hub_url(name, FILES[0], revision=revision), token=token, timeout=TIMEOUT)
        except Exception as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code in REFUSALS:
                raise
            unanswered, local_files_only = error, True  # no network, too many requests, an outage
    try:
        how = {"revision": revision, "token": token, "local_files_only": local_files_only, **other}
        config, _ = (Path(hf_hub_download(name, file, **how)) for file in FILES)
        for file in _further_files(config):
            hf_hub_download(name, file, **how)
    except Exception:
        if unanswered is None:
            raise
        raise unanswered from None
    return config.parent


def _further_files(config: Path) -> list[str]:
    """Return the files besides `FILES` of the model that a config.json describes. What is wrong with
    the file is said when the model is loaded."""

    def has(settings: Any, name: str) -> bool:
        if not isinstance(settings, dict):
            return False
        return bool(settings.get(name)) or any(has(part, name) for part in settings.values())

    try:
        settings = read_json(config)
    except (ValueError, OSError):
        return []
    return [file for name, files in FURTHER.items() if has(settings, name) for file in files]
