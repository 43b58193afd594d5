"""Final hidden states g(x): what the unembedding layer sees (§4.1)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from .attention import forward
from .token_trie import pack

if TYPE_CHECKING:
    from ..lm import Model


def hidden_states(model: "Model", prompts: Sequence[str], tokens: int = 1024) -> np.ndarray:
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
