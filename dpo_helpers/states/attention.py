"""Tree attention: one forward pass of a network over all sequences of a token trie."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from .token_trie import BLOCK, TokenTrie, attention_blocks

if TYPE_CHECKING:
    import torch


def forward(network: "torch.nn.Module", trie: TokenTrie) -> "torch.Tensor":
    """The state after the final norm at each of the T tokens of a trie, (T, d)."""
    import torch

    config, body = network.config, network.base_model
    window = getattr(config, "sliding_window", None)
    kinds = sorted(set(getattr(config, "layer_types", None) or ["all"]))
    windows = {"full_attention": None, "sliding_attention": window, "all": window}
    blocks = {kind: attention_blocks(trie, windows[kind]) for kind in kinds}
    masks = {kind: _mask(seen, body) for kind, (_, seen) in blocks.items()}
    keys, _ = blocks[kinds[0]]  # the same for all kinds of layers
    with tree_attention(network):
        return body(
            input_ids=torch.tensor(trie.tokens, device=body.device)[None],
            position_ids=torch.tensor(trie.depths, device=body.device)[None],
            attention_mask=masks if len(kinds) > 1 else masks[kinds[0]],
            tree_keys=torch.tensor(keys, device=body.device),
            use_cache=False,
        ).last_hidden_state[0]


@contextlib.contextmanager
def tree_attention(network: "torch.nn.Module") -> Iterator[None]:
    """Context manager that enables tree attention.

    If layers are checkpointed, the backward pass must be inside it too.
    """
    from transformers import AttentionInterface

    AttentionInterface.register("tree_attention", _attend)
    before = network.config._attn_implementation
    network.set_attn_implementation("tree_attention")
    try:
        yield
    finally:
        network.set_attn_implementation(before)


def _mask(seen: np.ndarray, body: "torch.nn.Module") -> "torch.Tensor":
    """What is added to the scores: (blocks, key heads, BLOCK · group, K)."""
    import torch

    shared = body.config.num_key_value_heads
    seen = np.repeat(seen, body.config.num_attention_heads // shared, axis=1)
    zero = torch.zeros((), dtype=body.dtype, device=body.device)
    lowest = torch.finfo(torch.bfloat16).min  # float32's would be −∞ under autocast
    mask = torch.where(torch.tensor(seen, device=body.device), zero, lowest)
    return mask[:, None].repeat(1, shared, 1, 1)


def _attend(
    module: "torch.nn.Module",
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: "torch.Tensor",
    scaling: float,
    tree_keys: "torch.Tensor",
    dropout: float = 0.0,
    **_: object,
) -> tuple["torch.Tensor", None]:
    """Attention of a packed row, all blocks at once: (1, heads, T, e) → (1, T, heads, e).

    Query heads that share a key head form one matrix product: for each block and key head,
    BLOCK · group queries with K keys. The softmax is in float32.
    """
    import torch

    _, heads, total, size = query.shape
    count, width = tree_keys.shape
    shared = key.shape[1]
    group = heads // shared

    rows = torch.nn.functional.pad(query[0].transpose(0, 1), (0, 0, 0, 0, 0, count * BLOCK - total))
    rows = rows.reshape(count, BLOCK, shared, group * size).transpose(1, 2)
    rows = rows.reshape(count * shared, BLOCK * group, size)

    def gather(x: torch.Tensor) -> torch.Tensor:  # (1, shared, T, e) → (count · shared, K, e)
        x = x[0].transpose(0, 1).index_select(0, tree_keys.flatten())
        return x.view(count, width, shared, size).transpose(1, 2).flatten(0, 1)

    mask = attention_mask.flatten(0, 1)
    scores = torch.baddbmm(mask, rows, gather(key).mT, alpha=scaling)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    out = torch.nn.functional.dropout(weights, dropout) @ gather(value)
    out = out.view(count, shared, BLOCK, group * size).transpose(1, 2)
    return out.reshape(1, count * BLOCK, heads, size)[:, :total], None
