"""Token tries: prompts that begin alike share their beginning.

Token sequences are merged into a trie, so each shared beginning is stored, and computed, once. The
trie is laid out depth first as one packed row without padding. Each token sees its ancestors and
itself, and its position is its depth. Attention is computed in blocks, so its cost grows with the
length of the row instead of its square.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BLOCK = 32


@dataclass(frozen=True)
class TokenTrie:
    """A packed row of T tokens in depth-first order.

    tokens   (T,) token ids
    parents  (T,) row number of the token before, −1 at a root
    depths   (T,) position of the token in its sequence, from 0
    ends     (n,) row number of each sequence's last token
    """

    tokens: np.ndarray
    parents: np.ndarray
    depths: np.ndarray
    ends: np.ndarray


def build_trie(sequences: Sequence[Sequence[int]]) -> TokenTrie:
    """The trie of non-empty token sequences, with ``ends`` in their order."""
    tokens: list[int] = []
    parents: list[int] = []
    depths: list[int] = []
    ends = [0] * len(sequences)
    path: list[int] = []
    previous: Sequence[int] = ()
    for i in _lexicographic(sequences):
        del path[shared_length(previous, sequences[i]) :]
        for token in sequences[i][len(path) :]:
            parents.append(path[-1] if path else -1)
            depths.append(len(path))
            path.append(len(tokens))
            tokens.append(token)
        ends[i] = path[-1]
        previous = sequences[i]
    return TokenTrie(*(np.array(x, dtype=np.int64) for x in (tokens, parents, depths, ends)))


def attention_blocks(trie: TokenTrie, window: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The keys that each block of ``BLOCK`` consecutive tokens needs, and which token sees which.

    In depth-first order, an ancestor that lies before a block is an ancestor of the block's first
    token. So K = BLOCK + the deepest path is enough keys for a block, however long the row is.

    Returns keys (blocks, K), row numbers padded with 0, and seen (blocks, BLOCK, K) bool: True
    where the key is the token itself or an ancestor and, with a sliding ``window``, fewer than
    ``window`` positions back.
    """
    total = len(trie.tokens)
    count = -(-total // BLOCK)
    width = BLOCK + int(trie.depths.max())
    keys = np.zeros((count, width), np.int64)
    seen = np.zeros((count, BLOCK, width), bool)
    for b in range(count):
        start, stop = b * BLOCK, min((b + 1) * BLOCK, total)
        above, at = [], trie.parents[start]
        while at >= 0:
            above.append(at)
            at = trie.parents[at]
        own = len(above)
        keys[b, :own] = above[::-1]
        keys[b, own : own + stop - start] = np.arange(start, stop)
        for i in range(start, stop):
            parent, row = trie.parents[i], seen[b, i - start]
            if parent >= start:
                row[:] = seen[b, parent - start]
            else:
                row[: trie.depths[i]] = True
            row[own + i - start] = True
            if window is not None:
                row &= trie.depths[i] - trie.depths[keys[b]] < window
    return keys, seen


def pack(sequences: Sequence[Sequence[int]], tokens: int) -> list[tuple[np.ndarray, TokenTrie]]:
    """Tries of about ``tokens`` tokens each that together hold all sequences.

    Sequences are taken in lexicographic order, so that neighbors share most. Returns, for each
    trie, the numbers of its sequences and the trie.
    """
    order = _lexicographic(sequences)
    packed, start, size = [], 0, 0
    for at, i in enumerate(order):
        before = sequences[order[at - 1]] if at > start else ()
        new = len(sequences[i]) - shared_length(before, sequences[i])
        if at > start and new and size + new > tokens:
            packed.append(order[start:at])
            start, size, new = at, 0, len(sequences[i])
        size += new
    packed.append(order[start:])
    return [
        (np.array(group), build_trie([sequences[i] for i in group])) for group in packed if group
    ]


def shared_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences share at their beginning."""
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return i
    return min(len(one), len(other))


def _lexicographic(sequences: Sequence[Sequence[int]]) -> list[int]:
    return sorted(range(len(sequences)), key=lambda i: list(sequences[i]))
