"""Training all parameters: one run in the cache, read and cleared up; one step."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from dpo_helpers import dpo, lm
from dpo_helpers.lm import Model, Pairs
from ledger.keys import code_sha256

if TYPE_CHECKING:
    from dpo_helpers.finetune import Curves, Settings


def train_in_cache(
    model: Model, pairs: Pairs, settings: "Settings", *, keep: bool = False, **options: object
) -> "Curves":
    """``finetune.train`` with its ``options``, in a ``training_folder`` that is removed afterwards.

    To ``keep`` it lets a later call read the run back.
    """
    from dpo_helpers import finetune

    if keep:
        return finetune.train(model, pairs, settings, _folder(model, pairs, settings), **options)
    with training_folder(model, pairs, settings) as folder:
        return finetune.train(model, pairs, settings, folder, **options)


@contextlib.contextmanager
def training_folder(model: Model, pairs: Pairs, settings: "Settings") -> Iterator[Path]:
    """A folder of the cache for one run of ``finetune.train``; removed if the body succeeds.

    The folder is named by the weights, the pairs, the settings and the code, so that a run that
    was killed, also after its last step, goes on.
    """
    folder = _folder(model, pairs, settings)
    yield folder
    shutil.rmtree(folder)


def _folder(model: Model, pairs: Pairs, settings: "Settings") -> Path:
    from dpo_helpers import finetune

    content = [finetune.network_sha256(model.network), pairs.sha256, asdict(settings)]
    content.append(code_sha256(finetune.train))
    name = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    return lm.cache_dir() / "training" / name


def first_step(model: Model, pairs: Pairs, beta: float, rate: float) -> tuple[float, float]:
    """Take one step of AdamW on all pairs, in place: the gradient norm, and the loss after it.

    The numbers are those of ``finetune.train``. It takes half the time: the reference is the
    policy of the forward pass itself, and no checkpoint is written.
    """
    import torch

    from dpo_helpers import finetune

    settings, policy = finetune.Settings(), finetune.Policy(model.network.float())
    weights = list(policy.parameters())
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0, fused=True)
    parts = pairs.microbatches(settings.max_tree_tokens)
    before, after = torch.zeros(2, len(pairs))
    for rows in parts:
        with finetune.compute_precision(policy.network, settings.precision):
            gap = policy(pairs.take(rows))
            before[rows] = gap.detach().cpu()
            (dpo.loss(beta * (gap - gap.detach())).sum() * (1 / len(pairs))).backward()
    norm = torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
    optimizer.step()
    for rows in parts:
        with torch.no_grad(), finetune.compute_precision(policy.network, settings.precision):
            after[rows] = policy(pairs.take(rows)).cpu()
    losses = dpo.loss(beta * (after.double() - before))
    return norm.item(), float(losses.numpy().mean())
