"""Tiny networks with random weights, for tests."""

import hashlib
from typing import TYPE_CHECKING

from ..data import load_behavior
from .convert import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def tiny(kind: str) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase", str]:
    """A network of two layers with seeded random weights, its tokenizer, and its sha256.

    ``kind`` is llama, mistral or gemma. The tokenizer is trained on the embedded sample.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    base.train_from_iterator(load_behavior("keeps-promises").prompts(), trainer)
    base.add_tokens(["Yes", "No"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=base, bos_token="<s>", eos_token="</s>")
    with quiet():
        config = AutoConfig.for_model(
            {"gemma": "gemma3_text"}.get(kind, kind),
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=512,
            sliding_window=16 if kind != "llama" else None,
            layer_types=["sliding_attention", "full_attention"] if kind == "gemma" else None,
            tie_word_embeddings=kind == "gemma",
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    state = hashlib.sha256()
    for name, weight in sorted(network.state_dict().items()):
        state.update(name.encode() + weight.numpy().tobytes())
    return network, tokenizer, state.hexdigest()
