"""Preference pairs as tokens, and the log-ratios of their responses under a model.

The loss (4) depends on the model only through each pair's log-ratio log π(y_w|x) − log π(y_l|x).
Both responses continue one prompt in a token trie, so one forward pass over the trie is enough.
Where both are predicted from the same state, as their first tokens are, the softmax normalizer
cancels: for one-token responses two rows of the unembedding are enough, eq. (7). The other
normalizers are computed for a few states at a time, forward and backward.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .. import data
from ..errors import InputError, excerpt
from ..states import TokenTrie, build_trie, forward, pack, shared_length

if TYPE_CHECKING:
    import torch

    from .models import Model

CHUNK = 256  # states whose logits are in memory at a time


@dataclass(frozen=True)
class Pairs:
    """n preference pairs as tokens.

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
        """The pairs with these numbers, in this order."""
        columns = (self.prompts, self.chosen, self.rejected)
        return Pairs(*(tuple(c[i] for i in members) for c in columns), self.group[members])

    def flipped(self) -> "Pairs":
        """The same pairs with chosen and rejected exchanged."""
        return replace(self, chosen=self.rejected, rejected=self.chosen)

    def split(self) -> tuple["Pairs", "Pairs"]:
        """The paper's split, applied to each group: (train, held out)."""
        parts: tuple[list[int], list[int]] = ([], [])
        for group in np.unique(self.group):
            members = np.flatnonzero(self.group == group)
            for part, rows in zip(parts, data.split(len(members)), strict=True):
                part.extend(members[rows])
        return self.take(parts[0]), self.take(parts[1])

    def microbatches(self, tokens: int) -> list[np.ndarray]:
        """The numbers of the pairs in microbatches, whose tries have at most ``tokens`` tokens.

        Pairs that share a prompt come together. A pair with more tokens is a microbatch of its own.
        """
        columns = zip(self.prompts, self.chosen, self.rejected, strict=True)
        return [
            members for members, _ in pack([p + c[:-1] + r[:-1] for p, c, r in columns], tokens)
        ]

    def trie(self) -> TokenTrie:
        """The token trie of all prompts with their responses: first the chosen, then the rejected.

        The last token of a response is predicted but not read, so it is not in the trie.
        """
        responses = (*self.chosen, *self.rejected)
        return build_trie([p + y[:-1] for p, y in zip(self.prompts * 2, responses, strict=True)])

    @property
    def sha256(self) -> str:
        """The sha256 of all tokens, in order, and of the groups."""
        content = [self.prompts, self.chosen, self.rejected, self.group.tolist()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def pairs_from_behaviors(
    model: "Model", behaviors: Sequence[data.Behavior], newline: bool = True
) -> Pairs:
    """The statements of one or several behaviors. A response is the one token Yes or No.

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
    """Pairs of texts with keys prompt, chosen and rejected, as ``data.load_pairs`` returns them.

    As in TRL, prompt and response are tokenized in one piece with a closing end-of-sequence token,
    and divided where the tokens of the prompt alone differ from those of either piece.

    Raises InputError for two equal responses, and for a pair longer than the model's context.
    """
    eos = model.tokenizer.eos_token
    columns: tuple[list, list, list] = ([], [], [])
    for number, row in enumerate(rows, 1):
        if row["chosen"] == row["rejected"]:
            raise InputError(
                f"pair {number}: chosen and rejected are the same ({excerpt(row['chosen'])}); "
                "leave it out"
            )
        texts = [row["prompt"], *(row["prompt"] + row[key] + eos for key in ("chosen", "rejected"))]
        prompt, chosen, rejected = model.tokenizer(texts)["input_ids"]
        cut = min(shared_length(prompt, ids) for ids in (chosen, rejected))
        for column, ids in zip(columns, (prompt[:cut], chosen[cut:], rejected[cut:]), strict=True):
            column.append(tuple(ids))
    return _within_context(Pairs(*map(tuple, columns), np.zeros(len(rows), int)), model)


def log_ratios(network: "torch.nn.Module", pairs: Pairs) -> "torch.Tensor":
    """log π(y_w|x) − log π(y_l|x) of each pair, (n,) float32, from one pass over one token trie.

    With tied embeddings, gradients reach the one matrix from both of its uses.
    """
    import torch

    trie = pairs.trie()
    states = forward(network, trie)
    unembedding = network.get_output_embeddings().weight
    to = dict(device=states.device)
    logits, normalizers = log_ratio_terms(trie, pairs)

    pair, row, token, sign = torch.tensor(logits, **to).unbind(1)
    picked = torch.nn.functional.embedding(token, unembedding).float()
    values = (states[row].float() * picked).sum(-1)
    total = torch.zeros(len(pairs), **to).index_add(0, pair, sign * values)
    if normalizers:
        pair, row, sign = np.array(normalizers).T
        rows, at = np.unique(row, return_inverse=True)
        values = _log_normalizers(states[torch.tensor(rows, **to)], unembedding)
        values = values[torch.tensor(at, **to)] * torch.tensor(sign, **to)
        total = total.index_add(0, torch.tensor(pair, **to), -values)
    return total


def log_probabilities(network: "torch.nn.Module", pairs: Pairs) -> "torch.Tensor":
    """log π(y_w|x) and log π(y_l|x) of each pair, (n, 2) float32, from one pass over one trie.

    Each is a log-ratio to the response without tokens, whose log-probability is 0.
    """
    single = Pairs(
        prompts=pairs.prompts * 2,
        chosen=pairs.chosen + pairs.rejected,
        rejected=((),) * (2 * len(pairs)),
        group=np.tile(pairs.group, 2),
    )
    return log_ratios(network, single).view(2, -1).T


def log_ratio_terms(
    trie: TokenTrie, pairs: Pairs
) -> tuple[list[tuple[int, int, int, int]], list[tuple[int, int, int]]]:
    """The log-ratios as sums: logits (pair, row, token, times), normalizers (pair, row, times).

    A chosen response counts +1, a rejected one −1. Terms that cancel are left out.
    """
    logits: Counter = Counter()
    normalizers: Counter = Counter()
    responses = (*pairs.chosen, *pairs.rejected)
    for number, (response, row) in enumerate(zip(responses, trie.ends.tolist(), strict=True)):
        pair, sign = number % len(pairs), 1 if number < len(pairs) else -1
        for token in reversed(response):
            logits[pair, row, token] += sign
            normalizers[pair, row] += sign
            row = int(trie.parents[row])
    terms = ([(*key, times) for key, times in c.items() if times] for c in (logits, normalizers))
    return tuple(terms)


def _log_normalizers(states: "torch.Tensor", unembedding: "torch.Tensor") -> "torch.Tensor":
    """log Σ_v exp(logit_v) at each state: (rows, d) → (rows,) float32.

    At most ``CHUNK`` states have their logits in memory; the backward pass computes them again.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    def log_normalizer(part: torch.Tensor) -> torch.Tensor:
        return (part @ unembedding.T).float().logsumexp(-1)

    parts = (
        checkpoint(log_normalizer, part, use_reentrant=False, preserve_rng_state=False)
        for part in states.split(CHUNK)
    )
    return torch.cat(list(parts))


def _within_context(pairs: Pairs, model: "Model") -> Pairs:
    limit = model.network.config.max_position_embeddings
    columns = zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True)
    for number, (prompt, chosen, rejected) in enumerate(columns, 1):
        length = len(prompt) + max(len(chosen), len(rejected))
        if length > limit:
            raise InputError(
                f"pair {number} has {length} tokens, but the context of {model.name} has {limit}; "
                "shorten it or leave it out"
            )
    return pairs
