"""Where a data set is: in the embedded sample, in a folder, or on the Hugging Face hub."""

import functools
import os
import re
from pathlib import Path

from ..errors import InputError, first_line, unknown
from ..files import content_keyed

HUB = {"persona": "Anthropic/model-written-evals", "hh-rlhf": "Anthropic/hh-rlhf"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def locate(kind: str, data: str) -> Path | None:
    """The folder that holds ``data`` of a ``kind`` ("persona", "hh-rlhf"); None means the hub.

    ``data`` is "sample", "anthropic" (the folder $DPO_DATA_DIR if set, else the hub), or a folder.
    Raises InputError if the folder has no subfolder of this kind.
    """
    if data == "sample":
        return Path(__file__).with_name("sample")
    name, folder = f"data = {data!r}", data
    if data == "anthropic":
        folder = os.environ.get("DPO_DATA_DIR")
        if not folder:
            return None
        name = f"DPO_DATA_DIR = {folder}"
    path = Path(folder).expanduser()
    if not (path / kind).is_dir():
        raise InputError(
            f"{name}: no folder {kind}/ in it; use the upstream layout, or data = 'sample'"
        )
    return path


@content_keyed
def at_hand(data: str, kind: str = "persona") -> bool:
    """Whether ``data`` of a ``kind`` is available without the network. Errors as ``locate``."""
    return locate(kind, data) is not None


def source(data: str, kind: str = "persona") -> str:
    """Where ``data`` of a ``kind`` comes from, in words. Errors as ``locate``."""
    if locate(kind, data) is None:
        return f"Hugging Face hub ({HUB[kind]})"
    if data == "sample":
        return "the embedded sample (this project's own)"
    name = {"persona": "Persona set", "hh-rlhf": "HH-RLHF"}[kind]
    return f"Anthropic's {name}, from a folder" if data == "anthropic" else "a folder of yours"


def checked_name(name: str, kind: str) -> str:
    """``name`` itself, if it can name a file of a folder and no path. Else raises InputError."""
    if not _NAME.fullmatch(name):
        raise InputError(f"{kind} {name!r}: only letters, digits, '.', '_' and '-' are allowed")
    return name


def online() -> bool:
    """Whether the hub answers within three seconds, through the proxy if one is set."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    from huggingface_hub.utils import get_session

    try:
        get_session().head("https://huggingface.co", timeout=3.0)
    except Exception:  # from the socket, the proxy, TLS or HTTP
        return False
    return True


@functools.cache
def hub_files(kind: str) -> tuple[str, ...]:
    """The paths of all files of a hub data set. Raises InputError if the hub cannot be reached."""
    from huggingface_hub import HfApi

    try:
        if not online():
            raise ConnectionError("the hub cannot be reached")
        return tuple(HfApi().list_repo_files(HUB[kind], repo_type="dataset"))
    except Exception as error:
        raise _failed(kind, error) from None


def from_hub(kind: str, file: str) -> Path:
    """The local copy of a file of a hub data set, fetched if it is not in the hub's cache.

    Raises InputError if the hub cannot be reached, and for an unknown file (with similar names).
    """
    from huggingface_hub import hf_hub_download

    if file not in hub_files(kind):
        raise unknown(f"file of {HUB[kind]}", file, hub_files(kind))
    try:
        return Path(hf_hub_download(HUB[kind], file, repo_type="dataset", etag_timeout=10))
    except Exception as error:
        raise _failed(kind, error) from None


def _failed(kind: str, error: Exception) -> InputError:
    return InputError(
        f"{HUB[kind]}: cannot be fetched ({first_line(error)}); set DPO_DATA_DIR to a copy of the "
        "data, or use data = 'sample'"
    )
