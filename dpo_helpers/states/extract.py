"""Final hidden states g(x): the input of the unembedding (§4.1)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError, excerpt
from .attention import forward
from .token_trie import pack

if TYPE_CHECKING:
    from ..lm import Model


def hidden_states(model: "Model", prompts: Sequence[str], tokens: int = 1024) -> np.ndarray:
    """g(x) of each prompt, (n, d) float32: the state after the final norm at its last token.

    The prompts are packed into token tries of about ``tokens`` tokens.
    Raises InputError for a prompt longer than the model's context.
    """
    import torch

    ids = model.tokenizer(list(prompts)).input_ids
    limit = model.network.config.max_position_embeddings
    for number, (sequence, prompt) in enumerate(zip(ids, prompts, strict=True), 1):
        if len(sequence) > limit:
            raise InputError(
                f"statement {number} has {len(sequence)} tokens, but the context of {model.name} "
                f"has {limit}; shorten it ({excerpt(prompt)})"
            )
    states = np.empty((len(ids), model.network.config.hidden_size), np.float32)
    with torch.inference_mode():
        for members, trie in pack(ids, tokens):
            states[members] = forward(model.network, trie)[trie.ends].float().cpu().numpy()
    return states
