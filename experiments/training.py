"""One training run of all parameters in the cache: trained, read, and cleared up."""

import hashlib
import json
import shutil
from dataclasses import asdict

from dpo_helpers import finetune, lm
from dpo_helpers.finetune import Curves, Settings
from dpo_helpers.lm import Model, Pairs
from ledger.keys import code_sha256


def train_in_cache(
    model: Model, pairs: Pairs, settings: Settings, *, keep: bool = False, **options: object
) -> Curves:
    """``finetune.train`` with its ``options``, in a folder of the cache that is removed afterwards.

    The folder is named by the weights, the pairs, the settings and the code, so that a run that
    was killed goes on. To ``keep`` it lets a later call read the run back.
    """
    content = [finetune.network_sha256(model.network), pairs.sha256, asdict(settings)]
    content.append(code_sha256(finetune.train))
    name = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    folder = lm.cache_dir() / "training" / name
    curves = finetune.train(model, pairs, settings, folder, **options)
    if not keep:
        shutil.rmtree(folder)
    return curves
