"""Write the page on what full fine-tuning needs. Its numbers are computed.

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
# Memory in GB, and dense bf16 FLOP/s from the data sheet.
CARDS = {"A100": (80, 312e12), "H100": (80, 989e12), "H200": (141, 989e12)}
# Lengths in tokens: Persona statements under SmolLM2's tokenizer, dialogues about as in HH-RLHF.
SHARED, OWN = 11, 21
DIALOGUE, RESPONSE = 150, 75


def statements(n: int) -> Pairs:
    """n statements with ``SHARED`` common tokens and ``OWN`` more each; responses are one token."""
    prompts = [(0,) * SHARED + (1 + i,) * OWN for i in range(n)]
    return Pairs(tuple(prompts), ((1,),) * n, ((2,),) * n, np.zeros(n, int))


def dialogues(n: int) -> Pairs:
    """n dialogues without common tokens; both responses have ``RESPONSE`` tokens."""
    prompts = [(i,) * DIALOGUE for i in range(n)]
    return Pairs(tuple(prompts), ((1,) * RESPONSE,) * n, ((2,) * RESPONSE,) * n, np.zeros(n, int))


def gigabytes(config: PreTrainedConfig, pairs: Pairs, gpus: int, checkpointing: bool) -> float:
    """Memory of each GPU: its shards, activations, and the weights gathered in bf16.

    ``pairs`` are the pairs that one GPU has in one tree.
    """
    need = memory.estimate(config, pairs, "bfloat16", checkpointing)
    layer, root = parameters(config)
    gathered = need.copies if gpus == 1 else 2 * (root + 2 * layer)
    shards = (need.weights + need.gradients + need.optimizer) / gpus
    return (shards + gathered + need.activations) / 1e9


def parameters(config: PreTrainedConfig) -> tuple[int, int]:
    """The number of weights in one layer, and the number of weights outside the layers."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    layer = sum(p.numel() for p in network.base_model.layers[0].parameters())
    total = sum(p.numel() for p in network.parameters())
    return layer, total - layer * config.num_hidden_layers


def measured() -> dict | None:
    """The latest measured training step, or None."""
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
    head = [
        "model",
        "weights",
        "GPUs",
        "statements",
        "statements, checkpointing",
        "dialogues",
        "fits",
    ]
    text = TEXT.format(
        shared=SHARED,
        own=OWN,
        tokens=len(batch.trie().tokens),
        dialogue=DIALOGUE,
        response=RESPONSE,
        needs=_table(head, rows),
        times=_table(
            ["model", "TFLOP per step", "measured machine", *(f"one {c}" for c in CARDS)][
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


TEXT = """<!-- Written by python -m workflow.hardware: edit that file, not this page. -->
(hardware)=
# What full fine-tuning needs

Each weight takes 16 bytes: the weight itself, its gradient, and AdamW's two moving averages, all
in float32. A bf16 copy of the weights and the activations kept for the backward pass come on top.
Memory is in GB per GPU. It is computed without a GPU: the code of a training step runs on fake
tensors, which have shapes but no values. With several GPUs, each one keeps its shard of the 16
bytes and gathers one layer ahead.

- *Statements* is one batch of 32 statements, divided over the GPUs. As one {{term}}`token tree`,
  the batch has {tokens} tokens: {shared} that all statements share, and {own} more for each one.
- *Dialogues* is one token tree per GPU, with as many pairs as fit into 4,096 tokens. A prompt has
  {dialogue} tokens, a response {response}. Checkpointing is on.
- *Fits* lists the cards that hold the statements, with checkpointing, and have a tenth of their
  memory to spare.

{needs}

If a run does not fit, lower `max_tree_tokens`, so that a batch is split into more and smaller
trees, or use more GPUs. A run that runs out of memory stops with an error that names settings that
would fit.

## How long a step takes

A step takes 6 floating-point operations for each weight inside the layers and each token of its
tree. With checkpointing, it takes 8.

{times}

{measured}All times in the table assume this share: of the measured rate for the measured machine,
and of the data sheet's dense bf16 rate for a GPU. Take the times of the GPUs as lower bounds: with
so few tokens, a GPU waits for its memory, and several GPUs wait for each other. Run
`python -m benchmarks finetune` to measure a step on your machine.

## How to start it

```
python -m dpo_helpers.finetune OUT --data anthropic --behavior agreeableness
accelerate launch --config_file configs/llama-2-7b.yaml -m dpo_helpers.finetune OUT \\
  --model llama-2-7b --data anthropic --behavior agreeableness --precision bfloat16
```

`configs/` has the configurations for Llama-2-7B and Mistral-7B on 8 GPUs. For another number of
GPUs, pass it to `accelerate launch`, for example `--num_processes 2`. Each process reads all
weights in float32 into host memory (4 bytes per weight). The same command continues a run that was
stopped. Each process then reads the run's checkpoint (12 bytes per weight).

With `--compile`, `torch.compile` compiles the network before the first step, for trees of any
shape. This takes time once, and long runs may recover it. The losses are the same up to rounding.
"""

MEASURED = """On the measured machine, a step of `smollm2-135m` took {ours_s:.2f} s and
{ours_gb} GB. It ran at {percent:.0f} % of the machine's bf16 matrix rate, {rate_gflops} GFLOP/s.
The step: {note}.

"""


if __name__ == "__main__":
    atomic_write(ROOT / "book" / "hardware.md", page().encode())
