"""Runs and measures of the chapter on the objectives (§2)."""

import numpy as np

from dpo_helpers import dpo
from ledger.store import Run, RunStore


def policy_run(records: RunStore) -> Run:
    """T0: the optimum of the RLHF objective (3) and that of the DPO loss (4), found numerically.

    A tabular policy, 4 prompts and 5 responses, drawn with each of 5 seeds.
    Arrays (seeds,): the largest difference of a probability between the two
    (``between``), and of each from the closed form (``rlhf``, ``dpo``).
    """
    import torch

    settings = {"prompts": 4, "responses": 5, "beta": 0.5, "seeds": 5}

    def gaps(seed: int) -> list[float]:
        draw = torch.Generator().manual_seed(seed)
        shape = (settings["prompts"], settings["responses"])
        logits, rewards = torch.randn((2, *shape), generator=draw, dtype=torch.float64)
        reference, beta = logits.log_softmax(-1), settings["beta"]
        best = dpo.rlhf_optimum(reference, rewards, beta).exp()
        rlhf = dpo.fit(lambda p: -dpo.rlhf_objective(p, reference, rewards, beta), shape)
        direct = dpo.fit(lambda p: dpo.population_loss(p, reference, rewards, beta), shape)
        pairs = ((rlhf, direct), (rlhf, best), (direct, best))
        return [(one - other).abs().max().item() for one, other in pairs]

    def make() -> dict[str, np.ndarray]:
        found = np.array([gaps(seed) for seed in range(settings["seeds"])])
        return dict(zip(("between", "rlhf", "dpo"), found.T, strict=True))

    return records.replay_or_run("t0", settings, {}, ("dpo", "experiments.setup.policy_run"), make)


def policy_gap(records: RunStore, run: str) -> np.ndarray:
    """Largest difference of a probability between the optima of (3) and (4), found numerically."""
    return records.recorded(run).arrays["between"]


RUNS = (policy_run,)
MEASURES = (policy_gap,)
