"""Token tries: no token is lost or stored twice, and each token sees exactly its ancestors."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_helpers.states import BLOCK, attention_blocks, build_trie, pack

TRIALS = settings(max_examples=150, deadline=None, derandomize=True, database=None)
TOKEN = st.integers(0, 2)
SEQUENCES = st.lists(st.lists(TOKEN, min_size=1, max_size=9), min_size=1, max_size=14)


def _path(trie, row):
    """The rows from a root down to ``row``."""
    path = []
    while row >= 0:
        path.append(row)
        row = trie.parents[row]
    return path[::-1]


def _prefixes(sequences):
    return {tuple(s[: i + 1]) for s in sequences for i in range(len(s))}


@st.composite
def _large(draw):
    """Sequences whose trie spans several blocks: shared openings, then random branches."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, longest = draw(st.integers(16, 40)), draw(st.integers(30, 60))
    alphabet, shared = draw(st.integers(2, 4)), draw(st.integers(0, 90))
    opening = rng.integers(0, alphabet, shared).tolist()
    tails = [rng.integers(0, alphabet, rng.integers(1, longest + 1)) for _ in range(count)]
    cuts = rng.integers(0, shared + 1, count)
    return [opening[:cut] + tail.tolist() for cut, tail in zip(cuts, tails, strict=True)]


@TRIALS
@given(SEQUENCES | _large())
def test_build_trie(sequences):
    trie = build_trie(sequences)
    assert len(trie.ends) == len(sequences)
    for sequence, end in zip(sequences, trie.ends, strict=True):
        assert trie.tokens[_path(trie, end)].tolist() == sequence
    total = len(trie.tokens)
    assert total == len(trie.parents) == len(trie.depths) == len(_prefixes(sequences))
    for row in range(total):
        parent = trie.parents[row]
        assert trie.depths[row] == (trie.depths[parent] + 1 if parent >= 0 else 0)
        # Depth first: the parent is the row before, or one of its ancestors, or there is none.
        assert parent == -1 or (row > 0 and parent in _path(trie, row - 1))


def test_build_trie_by_hand():
    trie = build_trie([[5, 7], [5, 6, 8], [5, 6], [9], [5, 7]])
    assert trie.tokens.tolist() == [5, 6, 8, 7, 9]
    assert trie.parents.tolist() == [-1, 0, 1, 0, -1]
    assert trie.depths.tolist() == [0, 1, 2, 1, 0]
    assert trie.ends.tolist() == [3, 2, 1, 4, 3]


@TRIALS
@given(SEQUENCES | _large(), st.integers(1, 200))
def test_pack(sequences, budget):
    packed = pack(sequences, budget)
    members = [i for group, _ in packed for i in group.tolist()]
    assert sorted(members) == list(range(len(sequences)))
    for group, trie in packed:
        own = [sequences[i] for i in group]
        for sequence, end in zip(own, trie.ends, strict=True):
            assert trie.tokens[_path(trie, end)].tolist() == sequence
        assert len(trie.tokens) == len(_prefixes(own))
        # Within the budget, unless it is one sequence (or equal ones) too long by itself.
        assert len(trie.tokens) <= budget or len({tuple(sequence) for sequence in own}) == 1
    for (one, trie), (other, _) in pairwise(packed):
        # Near the budget: what opens the next trie did not fit into this one.
        joined = _prefixes([sequences[i] for i in (*one, other[0])])
        assert len(joined) > budget
        assert len(trie.tokens) > budget - len(sequences[other[0]])


def test_pack_within_a_large_budget_is_one_trie():
    sequences = [[1, 2, 3], [2], [1, 2], [1, 2, 3]]
    ((group, trie),) = pack(sequences, 100)
    assert sorted(group.tolist()) == [0, 1, 2, 3]
    assert len(trie.tokens) == 4
    assert pack([], 100) == []


def _assert_sees_ancestors(trie, window):
    keys, seen = attention_blocks(trie, window)
    total = len(trie.tokens)
    assert keys.shape[0] == -(-total // BLOCK)
    assert seen.shape == (keys.shape[0], BLOCK, keys.shape[1])
    assert keys.shape[1] <= BLOCK + trie.depths.max(), "the cost of a block"
    for row in range(total):
        block, place = divmod(row, BLOCK)
        visible = sorted(keys[block, seen[block, place]].tolist())  # each key once
        path = _path(trie, row)
        assert visible == (path if window is None else path[-window:])
    assert not seen.reshape(-1, keys.shape[1])[total:].any()


@TRIALS
@given(SEQUENCES, st.none() | st.integers(1, 10))
def test_blocks_of_small_tries(sequences, window):
    _assert_sees_ancestors(build_trie(sequences), window)


@settings(TRIALS, max_examples=60)
@given(_large(), st.none() | st.integers(1, 100))
def test_blocks_of_large_tries(sequences, window):
    _assert_sees_ancestors(build_trie(sequences), window)


@pytest.mark.parametrize("window", [None, 1, 16, 63, 64, 65, 500])
def test_blocks_of_many(window):
    """Over ten blocks: bushes on a trunk that is longer than a block, and a lone chain."""
    rng = np.random.default_rng(0)
    trunk = rng.integers(0, 3, 150).tolist()
    sequences = [
        trunk[: rng.integers(1, 151)] + rng.integers(0, 3, rng.integers(1, 40)).tolist()
        for _ in range(40)
    ]
    trie = build_trie([*sequences, [3] * 300])
    assert len(trie.tokens) > 10 * BLOCK
    _assert_sees_ancestors(trie, window)


@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_blocks_of_a_chain(length):
    """One sequence: plain causal attention."""
    trie = build_trie([[7] * length])
    assert trie.parents.tolist() == list(range(-1, length - 1))
    _assert_sees_ancestors(trie, None)
    _assert_sees_ancestors(trie, 5)
