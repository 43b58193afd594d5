"""The first gradients of DPO on a preference data set, as inner products.

At the start of DPO, π_θ = π_ref. There the gradient of the loss (4) of pair i with respect to the
unembedding is −(β/2) G_i with

    G_i = Σ_{t ∈ chosen} (e_{y_t} − p_t) h_tᵀ − Σ_{t ∈ rejected} (e_{y_t} − p_t) h_tᵀ ,  V × d,

where h_t is the hidden state that predicts token y_t, and p_t the softmax there. One step of
gradient descent with learning rate η increases the gap log π(chosen) − log π(rejected) of pair i,
to first order, by (ηβ/2) ⟨G_i, M⟩, where M is the mean of all G. The audit consists of such inner
products. They are exact, and computed in slices of the vocabulary: no full G is held in memory.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from typing import TYPE_CHECKING

import numpy as np

from .. import lm
from ..lm import Model
from ..states import forward
from .summary import Audit

if TYPE_CHECKING:
    import torch

# Minimum number of pairs that share the same two responses to form a stratum.
MIN_STRATUM = 10
# Numbers in memory at once: positions × a slice of the vocabulary.
SLICE = 1 << 25


@dataclass
class _Positions:
    """The R positions from which tokens of N pairs are predicted, sorted by pair.

    h             (R, d) hidden states
    pair          (R,) int: the pair of each position
    normalizers   (R,) how often −log Σ exp(logit) enters the gap: p_t enters G as often
    at, token, sign   (L,) the logits in the gaps: position, token, ±1
    """

    h: "torch.Tensor"
    pair: "torch.Tensor"
    normalizers: "torch.Tensor"
    at: "torch.Tensor"
    token: "torch.Tensor"
    sign: "torch.Tensor"


def audit(model: Model, pairs: lm.Pairs, names: Sequence[str]) -> Audit:
    """Inner products of the first gradients of ``pairs``, whose ``group`` numbers ``names``.

    Shows progress bars on stderr. With R positions, V words and d dimensions it takes about
    2RVd(2 + strata) multiplications, besides one forward pass over the pairs.
    """
    import torch

    stratum, mirror = strata(pairs)
    with torch.inference_mode():
        positions = _read(model, pairs)
        unembedding = model.network.get_output_embeddings().weight.detach()
        logit = (positions.h[positions.at] * unembedding[positions.token].float()).sum(-1)
        if not positions.normalizers.any():  # one-token responses: only their rows matter
            words, positions.token = positions.token.unique(return_inverse=True)
            unembedding = unembedding[words]
        parts = positions.h.split(lm.CHUNK)
        log_z = torch.cat([(part @ unembedding.T.float()).logsumexp(-1) for part in parts])
        gap = logit.new_zeros(len(pairs))
        gap.index_add_(0, positions.pair[positions.at], positions.sign * logit)
        gap.index_add_(0, positions.pair, -positions.normalizers * log_z)
        products = _products(positions, log_z, unembedding, stratum)
    measured = (*products, gap.cpu().numpy(), *duplicates(pairs))
    return Audit(tuple(names), pairs.group, stratum, mirror, *measured)


def _read(model: Model, pairs: lm.Pairs) -> _Positions:
    """One forward pass over all pairs."""
    import torch
    from tqdm import tqdm

    to = dict(device=model.network.device)
    pair, normalizers, states, at, token, sign = [], [], [], [], [], []
    for members in tqdm(pairs.microbatches(1024), desc="reading", unit="batch"):
        part = pairs.take(members)
        trie = part.trie()
        states_of = forward(model.network, trie)
        number: dict = defaultdict(count().__next__)  # of each (pair, row)
        logits, counts = lm.log_ratio_terms(trie, part)
        for i, row, y, times in logits:
            at.append(len(pair) + number[i, row])
            token.append(y)
            sign.append(times)
        weights = {(i, row): times for i, row, times in counts}
        normalizers.extend(weights.get(key, 0) for key in number)
        states.append(states_of[[row for _, row in number]].float())
        pair.extend(int(members[i]) for i, _ in number)
    pair = torch.tensor(pair, **to)
    order = torch.argsort(pair, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), **to)
    return _Positions(
        h=torch.cat(states)[order],
        pair=pair[order],
        normalizers=torch.tensor(normalizers, **to)[order].float(),
        at=place[torch.tensor(at, **to)],
        token=torch.tensor(token, **to),
        sign=torch.tensor(sign, **to).float(),
    )


def _products(
    p: _Positions, log_z: "torch.Tensor", unembedding: "torch.Tensor", stratum: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``stratum_gram``, ``pair_stratum`` and ``squared_norm`` of ``Audit``."""
    import torch
    from tqdm import tqdm

    to = dict(device=p.h.device)
    number, total = int(stratum.max()) + 1, len(stratum)
    member = torch.tensor(stratum, **to)[p.pair]
    size = torch.bincount(torch.tensor(stratum, **to), minlength=number)
    ends = torch.searchsorted(p.pair, torch.arange(total + 1, **to)).tolist()
    spans = [slice(*span) for span in pairwise(ends)]
    gram = torch.zeros(number, number, dtype=torch.float64, **to)
    pair_stratum = torch.zeros(total, number, dtype=torch.float64, **to)
    inner = [torch.zeros(span.stop - span.start, span.stop - span.start, **to) for span in spans]
    width = max(1, min(len(unembedding), SLICE // max(1, len(p.h))))
    for start in tqdm(range(0, len(unembedding), width), desc="first gradient", unit="slice"):
        rows = unembedding[start : start + width].float()
        # e (R, width): the slice of e_{y_t} − p_t, summed over the tokens predicted from there.
        e = -p.normalizers[:, None] * torch.exp(p.h @ rows.T - log_z[:, None])
        here = (p.token >= start) & (p.token < start + len(rows))
        e.index_put_((p.at[here], p.token[here] - start), p.sign[here], accumulate=True)
        means = torch.stack(
            [e[member == s].T @ p.h[member == s] / size[s] for s in range(number)]
        ).double()
        flat = means.flatten(1)
        gram += flat @ flat.T
        for s in range(number):
            along = (e * (p.h @ means[s].T.float())).sum(1).double()
            pair_stratum[:, s].index_add_(0, p.pair, along)
        for square, span in zip(inner, spans, strict=True):
            square += e[span] @ e[span].T
    grams = [p.h[span] @ p.h[span].T for span in spans]
    norms = [(one * other).sum().item() for one, other in zip(inner, grams, strict=True)]
    return gram.cpu().numpy(), pair_stratum.cpu().numpy(), np.array(norms)


def strata(pairs: lm.Pairs) -> tuple[np.ndarray, np.ndarray]:
    """``stratum`` and ``mirror`` of ``Audit``."""
    kinds = list(zip(pairs.group.tolist(), pairs.chosen, pairs.rejected, strict=True))
    frequent = {kind for kind, times in Counter(kinds).items() if times >= MIN_STRATUM}
    names = [kind if kind in frequent else kind[:1] for kind in kinds]
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    mirror = [number.get((name[0], *name[:0:-1]), -1) if name[1:] else -1 for name in number]
    return np.array([number[name] for name in names]), np.array(mirror)


def duplicates(pairs: lm.Pairs) -> tuple[np.ndarray, np.ndarray]:
    """``duplicate_of`` and ``contradicted_by`` of ``Audit``."""
    content = list(zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True))
    first: dict[tuple, int] = {}
    for number, pair in enumerate(content):
        first.setdefault(pair, number)
    contradicted_by = [first.get((x, rejected, chosen), -1) for x, chosen, rejected in content]
    return np.array([first[pair] for pair in content]), np.array(contradicted_by)
