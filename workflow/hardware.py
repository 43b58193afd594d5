"""The page on what full fine-tuning needs, its numbers computed.

python -m workflow.hardware
"""

import json

import numpy as np
from transformers import AutoConfig, PreTrainedConfig

from dpo_helpers.files import atomic_write
from dpo_helpers.finetune import memory
from dpo_helpers.lm import Pairs
from ledger.store import ROOT

_SEVEN = dict(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000)
ARCHITECTURES = {
    "smollm2-135m": dict(
        model_type="llama",
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    ),
    "gemma-3-270m": dict(
        model_type="gemma3_text",
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        vocab_size=262144,
        tie_word_embeddings=True,
    ),
    "llama-2-7b": dict(model_type="llama", intermediate_size=11008, **_SEVEN),
    "mistral-7b": dict(
        model_type="mistral", intermediate_size=14336, num_key_value_heads=8, **_SEVEN
    ),
}
GPUS = (1, 2, 8)
# Memory in GB, and dense bf16 FLOP/s by the data sheet.
CARDS = {"A100": (80, 312e12), "H100": (80, 989e12), "H200": (141, 989e12)}
# Persona statements as SmolLM2's tokenizer has them, and dialogues about as long as HH-RLHF's.
SHARED, OWN = 11, 21
DIALOGUE, RESPONSE = 150, 75


def statements(n: int) -> Pairs:
    """n statements: ``SHARED`` tokens are common, ``OWN`` are not; responses are one token."""
    prompts = [(0,) * SHARED + (1 + i,) * OWN for i in range(n)]
    return Pairs(tuple(prompts), ((1,),) * n, ((2,),) * n, np.zeros(n, int))


def dialogues(n: int) -> Pairs:
    """n dialogues that share nothing, both responses ``RESPONSE`` tokens long."""
    prompts = [(i,) * DIALOGUE for i in range(n)]
    return Pairs(tuple(prompts), ((1,) * RESPONSE,) * n, ((2,) * RESPONSE,) * n, np.zeros(n, int))


def gigabytes(config: PreTrainedConfig, pairs: Pairs, gpus: int, checkpointing: bool) -> float:
    """Of each GPU: its part of the shards, what the backward pass keeps, weights gathered in bf16.

    ``pairs`` is what one GPU has in one tree.
    """
    need = memory.estimate(config, pairs, "bfloat16", checkpointing)
    layer, root = parameters(config)
    gathered = need.copies if gpus == 1 else 2 * (root + 2 * layer)
    shards = (need.weights + need.gradients + need.optimizer) / gpus
    return (shards + gathered + need.activations) / 1e9


def parameters(config: PreTrainedConfig) -> tuple[int, int]:
    """The numbers of one layer's weights, and of all that are in no layer."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    layer = sum(p.numel() for p in network.base_model.layers[0].parameters())
    total = sum(p.numel() for p in network.parameters())
    return layer, total - layer * config.num_hidden_layers


def measured() -> dict | None:
    """The latest measured step, if there is one."""
    rows = json.loads((ROOT / "benchmarks" / "latest.json").read_text("utf-8"))
    return next((row for row in rows if "share_of_rate" in row), None)


def page() -> str:
    """The page, in Markdown."""
    batch, tree = statements(32), dialogues(4096 // (DIALOGUE + 2 * RESPONSE))
    rows, times = [], []
    step = measured()
    for name, fields in ARCHITECTURES.items():
        config = AutoConfig.for_model(**fields)
        layer, root = parameters(config)
        inner = layer * config.num_hidden_layers
        flops = 6 * inner * len(batch.trie().tokens)
        for gpus in GPUS:
            share = statements(32 // gpus)
            cells = [
                gigabytes(config, pairs, gpus, checkpointing)
                for pairs, checkpointing in ((share, False), (share, True), (tree, True))
            ]
            fits = [card for card, (there, _) in CARDS.items() if cells[1] < 0.9 * there]
            rows.append([f"`{name}`", f"{(inner + root) / 1e9:.2f} B", str(gpus)])
            rows[-1] += [f"{cell:.1f}" for cell in cells] + [", ".join(fits) or "none"]
        cells = [f"{flops / 1e12:.1f}"]
        if step:
            at = step["share_of_rate"]
            cells.append(f"{flops / (at * step['rate_gflops'] * 1e9):.0f} s")
            cells += [f"{flops / (at * rate) * 1e3:.1f} ms" for _, rate in CARDS.values()]
        times.append([f"`{name}`", *cells])
    head = ["model", "weights", "GPUs", "statements", "… with checkpointing", "dialogues", "fits"]
    text = TEXT.format(
        shared=SHARED,
        own=OWN,
        tokens=len(batch.trie().tokens),
        dialogue=DIALOGUE,
        response=RESPONSE,
        needs=_table(head, rows),
        times=_table(
            ["model", "TFLOP a step", "measured machine", *(f"one {c}" for c in CARDS)][
                : len(times[0])
            ],
            times,
        ),
        measured=MEASURED.format(**step, percent=100 * step["share_of_rate"]) if step else "",
    )
    return text


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


TEXT = """<!-- Written by python -m workflow.hardware: edit that, not this. -->
(hardware)=
# What full fine-tuning needs

Every weight takes 16 bytes: itself, its gradient and the two averages of AdamW, all float32. To
that come a bf16 copy and what the backward pass keeps of the forward pass. Memory is in GB for
each GPU and computed without one: fake tensors go through the step's own code. Sharded over
several GPUs, each keeps its part of the 16 bytes and gathers a layer ahead.

*Statements*: a batch of 32 as one tree, {shared} tokens shared and {own} of each its own, {tokens}
in all, divided over the GPUs. *Dialogues*: a tree of 4,096 tokens a GPU, prompts of {dialogue} and
responses of {response} tokens, with checkpointing. *Fits*: cards whose memory holds the
statements, with checkpointing and a tenth to spare.

{needs}

Where it does not fit, set `tokens` lower (more and smaller trees a batch), or take more GPUs. A run
that runs out of memory ends with the setting that would fit.

## How long a step takes

A step has 6 floating-point operations for each weight inside the layers and each token of its
tree; with checkpointing, 8.

{times}

{measured}The GPUs' columns divide by their data sheets' dense bf16 rate and the same share: what it
would be if they were used as well. So few tokens leave a GPU waiting for its memory, and several
for each other: take them as lower bounds, and `python -m benchmarks finetune` on yours as the
measure.

## How to start it

```
python -m dpo_helpers.finetune OUT --data anthropic --behavior agreeableness
accelerate launch --config_file configs/llama-2-7b.yaml -m dpo_helpers.finetune OUT \\
  --model llama-2-7b --data anthropic --behavior agreeableness --precision bfloat16
```

`configs/` holds the configurations for Llama-2-7B and Mistral-7B on 8 GPUs; `--num_processes 2`
says otherwise. Each process reads all weights in float32 into the host's memory, 4 bytes each; to
go on with a run that was stopped, which the same command does, its checkpoint, 12 bytes a weight.

`--compile` has `torch.compile` compile the network, for any shape of tree, before the first step is
taken: a cost paid once, which long runs may earn back. The losses are the same to rounding.
"""

MEASURED = """The measured machine took {ours_s:.2f} s a step of `smollm2-135m`, {percent:.0f} % of
its bf16 matrix rate of {rate_gflops} GFLOP/s, and {ours_gb} GB ({note}).
"""


if __name__ == "__main__":
    atomic_write(ROOT / "book" / "hardware.md", page().encode())
