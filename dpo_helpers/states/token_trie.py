"""Token trees: prompts that begin alike share what they share. The one idea behind all speed.

Sequences of tokens are merged into a trie: every shared beginning is kept, and
computed, once. The trie is laid out as one packed row without padding, depth
first; each token sees its ancestors and itself, and its position is its depth.
Attention is computed block by block, so its cost grows with the row's length,
not with its square.
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
    """The tree of some non-empty token sequences, ``ends`` in their order."""
    tokens: list[int] = []
    parents: list[int] = []
    depths: list[int] = []
    ends = [0] * len(sequences)
    path: list[int] = []
    previous: Sequence[int] = ()
    for i in sorted(range(len(sequences)), key=lambda i: list(sequences[i])):
        del path[_shared(previous, sequences[i]) :]
        for token in sequences[i][len(path) :]:
            parents.append(path[-1] if path else -1)
            depths.append(len(path))
            path.append(len(tokens))
            tokens.append(token)
        ends[i] = path[-1]
        previous = sequences[i]
    return TokenTrie(*(np.array(x, dtype=np.int64) for x in (tokens, parents, depths, ends)))


def attention_blocks(tree: TokenTrie, window: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """What each block of ``BLOCK`` consecutive tokens has to look at, and who sees what.

    In depth-first order an ancestor of a block's token that lies before the
    block is an ancestor of its first token too. So K = BLOCK + the deepest path
    keys are enough for each block, however long the row.

    Returns keys (blocks, K) row numbers, filled up with 0, and seen (blocks,
    BLOCK, K) bool: whether a token sees a key, that is, the key is itself or an
    ancestor, with a sliding ``window`` fewer than ``window`` positions back.
    """
    total = len(tree.tokens)
    count = -(-total // BLOCK)
    width = BLOCK + int(tree.depths.max())
    keys = np.zeros((count, width), np.int64)
    seen = np.zeros((count, BLOCK, width), bool)
    for b in range(count):
        start, stop = b * BLOCK, min((b + 1) * BLOCK, total)
        above, at = [], tree.parents[start]
        while at >= 0:
            above.append(at)
            at = tree.parents[at]
        own = len(above)
        keys[b, :own] = above[::-1]
        keys[b, own : own + stop - start] = np.arange(start, stop)
        for i in range(start, stop):
            parent, row = tree.parents[i], seen[b, i - start]
            if parent >= start:
                row[:] = seen[b, parent - start]
            else:
                row[: tree.depths[i]] = True
            row[own + i - start] = True
            if window is not None:
                row &= tree.depths[i] - tree.depths[keys[b]] < window
    return keys, seen


def pack(sequences: Sequence[Sequence[int]], tokens: int) -> list[tuple[np.ndarray, TokenTrie]]:
    """Trees of about ``tokens`` tokens each that hold all sequences between them.

    Sequences are taken in lexicographic order, so that neighbours share most.
    Returns, for each tree, the numbers of its sequences and the tree.
    """
    order = sorted(range(len(sequences)), key=lambda i: list(sequences[i]))
    packed, start, size = [], 0, 0
    for at, i in enumerate(order):
        before = sequences[order[at - 1]] if at > start else ()
        new = len(sequences[i]) - _shared(before, sequences[i])
        if at > start and new and size + new > tokens:
            packed.append(order[start:at])
            start, size, new = at, 0, len(sequences[i])
        size += new
    packed.append(order[start:])
    return [
        (np.array(group), build_trie([sequences[i] for i in group])) for group in packed if group
    ]


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return i
    return min(len(one), len(other))
