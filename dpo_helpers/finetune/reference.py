"""The log-ratios of the reference policy, computed once and cached by their content."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import torch

from .. import lm
from ..errors import InputError
from ..files import atomic_write
from ..lm import Pairs
from .memory import enough_memory
from .policy import Engine, network_sha256
from .settings import Settings


def reference_log_ratios(model: lm.Model, pairs: Pairs, settings: Settings) -> np.ndarray:
    """log π(y_w|x) − log π(y_l|x) of each pair under the present ``model``, (n,) float32.

    Cached by content. Raises InputError for a full disk and too little memory.
    """
    weights = network_sha256(model.network.float())
    return cached_log_ratios(Engine(model.network, settings), weights, pairs, settings)


def cached_log_ratios(engine: Engine, weights: str, pairs: Pairs, settings: Settings) -> np.ndarray:
    """The log-ratios under the weights of an engine, whose sha256 is ``weights``: (n,) float32."""
    content = [weights, pairs.sha256, settings.precision, settings.max_tree_tokens, _code_sha256()]
    name = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    path = lm.cache_dir() / "reference" / f"{name}.npy"
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        found = np.zeros(0, np.float32)
    here = torch.tensor(int(found.shape == (len(pairs),)), device=engine.network.device)
    if engine.sum(here) == engine.accelerator.num_processes:
        return found
    batch = pairs.take(range(len(pairs))[: settings.batch_size])
    with enough_memory(0, engine.network, batch, settings):
        found = engine.log_ratios(pairs)
    if engine.is_main:
        blob = io.BytesIO()
        np.save(blob, found)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, blob.getvalue())
        except OSError as error:
            cause = error.strerror or error
            raise InputError(
                f"{path}: cannot be written ({cause}); set DPO_CACHE_DIR to another disk"
            ) from None
    return found


def _code_sha256() -> str:
    """The sha256 of all code that a forward pass may use, so that no stale reference is read."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
