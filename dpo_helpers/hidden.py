"""Final hidden states g(x): what the unembedding layer sees (§4.1)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .errors import InputError
from .tree import BLOCK, Tree, blocks, pack

if TYPE_CHECKING:
    import torch

    from .models import Model


def hidden_states(model: "Model", prompts: Sequence[str], tokens: int = 2048) -> np.ndarray:
    """g(x) of each prompt: the hidden state after the final norm at its last token.

    The prompts are packed into token trees of about ``tokens`` tokens: no
    padding, and every shared beginning computed once a tree.

    Returns (n, d) float32, in the order of the prompts.
    Raises InputError for a prompt that is longer than the model's context.
    """
    import torch

    ids = model.tokenizer(list(prompts)).input_ids
    limit = model.network.config.max_position_embeddings
    for number, sequence in enumerate(ids, 1):
        if len(sequence) > limit:
            raise InputError(
                f"statement {number} has {len(sequence)} tokens, the context of {model.name} is "
                f"{limit}; shorten it ({prompts[number - 1][:60]!r} …)"
            )
    states = np.empty((len(ids), model.network.config.hidden_size), np.float32)
    with torch.inference_mode():
        for members, tree in pack(ids, tokens):
            states[members] = forward(model.network, tree)[tree.ends].float().cpu().numpy()
    return states


def forward(network: "torch.nn.Module", tree: Tree) -> "torch.Tensor":
    """One pass over a tree: the state after the final norm at each of its T tokens, (T, d)."""
    import torch
    from transformers import AttentionInterface

    config, body = network.config, network.base_model
    AttentionInterface.register("token_tree", _attend)
    window = getattr(config, "sliding_window", None)
    kinds = sorted(set(getattr(config, "layer_types", None) or ["all"]))
    windows = {"full_attention": None, "sliding_attention": window, "all": window}
    looks = {kind: blocks(tree, windows[kind]) for kind in kinds}
    keys = looks[kinds[0]][0]
    masks = {kind: _mask(seen, body) for kind, (_, seen) in looks.items()}
    mask = masks if len(kinds) > 1 else masks[kinds[0]]
    before = config._attn_implementation
    network.set_attn_implementation("token_tree")
    try:
        return body(
            input_ids=torch.tensor(tree.tokens, device=body.device)[None],
            position_ids=torch.tensor(tree.depths, device=body.device)[None],
            attention_mask=mask,
            tree_keys=torch.tensor(keys, device=body.device),
            use_cache=False,
        ).last_hidden_state[0]
    finally:
        network.set_attn_implementation(before)


def _mask(seen: np.ndarray, body: "torch.nn.Module") -> "torch.Tensor":
    """(blocks, 1, BLOCK, K) to be added to the attention scores."""
    import torch

    zero = torch.zeros((), dtype=body.dtype, device=body.device)
    lowest = torch.finfo(body.dtype).min
    return torch.where(torch.tensor(seen, device=body.device)[:, None], zero, lowest)


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
    """Attention of a packed row, all blocks at once: (1, heads, T, e) → (1, T, heads, e)."""
    import torch

    _, heads, total, size = query.shape
    count, width = tree_keys.shape
    query = torch.nn.functional.pad(query[0], (0, 0, 0, count * BLOCK - total))
    query = query.view(heads, count, BLOCK, size).transpose(0, 1)

    def gather(x: torch.Tensor) -> torch.Tensor:
        x = x[0].transpose(0, 1)[tree_keys.flatten()].view(count, width, -1, size)
        return x.transpose(1, 2).repeat_interleave(heads // x.shape[2], dim=1)

    out = torch.nn.functional.scaled_dot_product_attention(
        query, gather(key), gather(value), attention_mask, dropout_p=dropout, scale=scaling
    )
    return out.transpose(1, 2).reshape(count * BLOCK, heads, size)[None, :total], None
