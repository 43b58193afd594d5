"""Preference pairs as tokens, and how much likelier the preferred response is than the other.

The loss (4) needs of each pair the gap log π(y_w|x) − log π(y_l|x) alone. Both
responses branch off their prompt in a token tree, so one forward pass over the
tree has all of it. Where both responses are predicted from the same state, as
the first token of each is, the softmax normaliser cancels from the gap: for
responses of one token only two rows of the unembedding enter, eq. (7). The
other normalisers are computed a few rows at a time, forward and backward.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .. import data
from ..errors import InputError
from ..states import TokenTrie, build_trie, forward, pack

if TYPE_CHECKING:
    import torch

    from .models import Model

CHUNK = 256


@dataclass(frozen=True)
class Pairs:
    """n preference pairs, tokenised.

    prompts, chosen, rejected   n token lists each: x, y_w and y_l
    group                       (n,) int from 0: the behavior of a mixture, for measuring only
    """

    prompts: tuple[tuple[int, ...], ...]
    chosen: tuple[tuple[int, ...], ...]
    rejected: tuple[tuple[int, ...], ...]
    group: np.ndarray

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, members: Sequence[int] | np.ndarray) -> "Pairs":
        """The pairs of these numbers, in this order."""
        columns = (self.prompts, self.chosen, self.rejected)
        return Pairs(*(tuple(c[i] for i in members) for c in columns), self.group[members])

    def flipped(self) -> "Pairs":
        """The same pairs with every preference turned round."""
        return replace(self, chosen=self.rejected, rejected=self.chosen)

    def split(self) -> tuple["Pairs", "Pairs"]:
        """The paper's split, of each group by itself: (train, held out)."""
        parts: tuple[list[int], list[int]] = ([], [])
        for group in np.unique(self.group):
            members = np.flatnonzero(self.group == group)
            for part, rows in zip(parts, data.split(len(members)), strict=True):
                part.extend(members[rows])
        return self.take(parts[0]), self.take(parts[1])

    def microbatches(self, tokens: int) -> list[np.ndarray]:
        """The pairs' numbers in lots whose trees have at most ``tokens`` tokens.

        A lot is at least one pair; pairs that share most come together.
        """
        paths = [
            p + c[:-1] + r[:-1]
            for p, c, r in zip(self.prompts, self.chosen, self.rejected, strict=True)
        ]
        return [members for members, _ in pack(paths, tokens)]

    def trie(self) -> TokenTrie:
        """The token tree of all prompts and responses: (chosen …, rejected …) are its sequences.

        A response's last token is predicted, not read: it is no part of the tree.
        """
        responses = (*self.chosen, *self.rejected)
        return build_trie([p + y[:-1] for p, y in zip(self.prompts * 2, responses, strict=True)])

    @property
    def sha256(self) -> str:
        """Of the content: every token, in order, and the groups."""
        content = [self.prompts, self.chosen, self.rejected, self.group.tolist()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def pairs_from_behaviors(
    model: "Model", behaviors: Sequence[data.Behavior], newline: bool = True
) -> Pairs:
    """The statements of one or several behaviors: responses are the one token Yes or No.

    Raises InputError for a statement longer than the model's context.
    """
    prompts = [p for behavior in behaviors for p in behavior.prompts(newline)]
    labels = np.concatenate([behavior.labels for behavior in behaviors])
    pairs = Pairs(
        prompts=tuple(map(tuple, model.tokenizer(prompts).input_ids)),
        chosen=tuple((model.yes if label > 0 else model.no,) for label in labels),
        rejected=tuple((model.no if label > 0 else model.yes,) for label in labels),
        group=np.repeat(np.arange(len(behaviors)), [len(b.labels) for b in behaviors]),
    )
    return _within_context(pairs, model)


def pairs_from_text(model: "Model", rows: Sequence[Mapping[str, str]]) -> Pairs:
    """Pairs of text (``prompt``, ``chosen``, ``rejected``), as ``data.load_pairs`` has them.

    Tokenised as TRL does it: prompt and response in one piece, each response
    closed by the end-of-sequence token, and cut where the tokens of the prompt
    alone and of both pieces part.

    Raises InputError for two equal responses, and for a pair longer than the model's context.
    """
    tokenizer = model.tokenizer
    columns: tuple[list, list, list] = ([], [], [])
    for number, row in enumerate(rows, 1):
        if row["chosen"] == row["rejected"]:
            raise InputError(
                f"pair {number}: chosen and rejected are the same ({row['chosen'][:60]!r} …); "
                "leave it out"
            )
        whole = [row["prompt"] + row[name] for name in ("chosen", "rejected")]
        prompt, *both = tokenizer([row["prompt"], *(w + tokenizer.eos_token for w in whole)])[
            "input_ids"
        ]
        cut = min(_shared(prompt, ids) for ids in both)
        for column, ids in zip(columns, (prompt[:cut], both[0][cut:], both[1][cut:]), strict=True):
            column.append(tuple(ids))
    pairs = Pairs(*map(tuple, columns), np.zeros(len(columns[0]), int))
    return _within_context(pairs, model)


def log_ratios(network: "torch.nn.Module", pairs: Pairs) -> "torch.Tensor":
    """log π(y_w|x) − log π(y_l|x) of each pair, (n,) float32, from one pass over one tree.

    With tied embeddings gradients reach the one matrix from both its uses, as
    in ``transformers``.
    """
    import torch

    tree = pairs.trie()
    states = forward(network, tree)
    unembedding = network.get_output_embeddings().weight
    to = dict(device=states.device)
    total = torch.zeros(len(pairs), **to)
    logits, normalisers = log_ratio_terms(tree, pairs)

    pair, row, token, sign = torch.tensor(logits, **to).unbind(1)
    picked = torch.nn.functional.embedding(token, unembedding).float()
    values = (states[row].float() * picked).sum(-1)
    total = total.index_add(0, pair, sign * values)
    if normalisers:
        pair, row, sign = np.array(normalisers).T
        rows, at = np.unique(row, return_inverse=True)
        values = _normalisers(states[torch.tensor(rows, **to)], unembedding)
        values = values[torch.tensor(at, **to)] * torch.tensor(sign, **to)
        total = total.index_add(0, torch.tensor(pair, **to), -values)
    return total


def log_probabilities(network: "torch.nn.Module", pairs: Pairs) -> "torch.Tensor":
    """log π(y_w|x) and log π(y_l|x) of each pair, (n, 2) float32, from one pass over one tree.

    Each is the gap to a response of no tokens, which has log-probability 0.
    """
    single = Pairs(
        prompts=pairs.prompts * 2,
        chosen=pairs.chosen + pairs.rejected,
        rejected=((),) * (2 * len(pairs)),
        group=np.tile(pairs.group, 2),
    )
    return log_ratios(network, single).view(2, -1).T


def log_ratio_terms(
    tree: TokenTrie, pairs: Pairs
) -> tuple[list[tuple[int, int, int, int]], list[tuple[int, int, int]]]:
    """What the gaps sum up: logits (pair, row, token, times), normalisers (pair, row, times).

    Chosen responses count +1, rejected ones −1; what cancels is left out.
    """
    logits: Counter = Counter()
    normalisers: Counter = Counter()
    responses = (*pairs.chosen, *pairs.rejected)
    for number, (response, row) in enumerate(zip(responses, tree.ends.tolist(), strict=True)):
        pair, sign = number % len(pairs), 1 if number < len(pairs) else -1
        for token in reversed(response):
            logits[pair, row, token] += sign
            normalisers[pair, row] += sign
            row = int(tree.parents[row])
    terms = ([(*key, times) for key, times in c.items() if times] for c in (logits, normalisers))
    return tuple(terms)


def _normalisers(states: "torch.Tensor", unembedding: "torch.Tensor") -> "torch.Tensor":
    """log Σ_v exp(logit_v) at each state, (rows, d) → (rows,) float32.

    The logits of ``CHUNK`` rows at most are in memory; backward computes them again.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    def normaliser(part: torch.Tensor) -> torch.Tensor:
        return (part @ unembedding.T).float().logsumexp(-1)

    parts = (
        checkpoint(normaliser, part, use_reentrant=False, preserve_rng_state=False)
        for part in states.split(CHUNK)
    )
    return torch.cat(list(parts))


def _within_context(pairs: Pairs, model: "Model") -> Pairs:
    limit = model.network.config.max_position_embeddings
    for number, (p, c, r) in enumerate(
        zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True), 1
    ):
        length = len(p) + max(len(c), len(r))
        if length > limit:
            raise InputError(
                f"pair {number} has {length} tokens, the context of {model.name} is {limit}; "
                "shorten it or leave it out"
            )
    return pairs


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    unlike = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(unlike, min(len(one), len(other)))
