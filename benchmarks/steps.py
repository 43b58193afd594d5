"""Take optimizer steps in one of several ways, in its own process.

    python -m benchmarks.steps WAY

Each line on standard input requests one step on the same batch: 32 Persona statements, or, with
LoRA, 32 pairs of dialogues. Each answer is a line of JSON: seconds, peak memory so far in bytes,
and the loss of the batch if the way reports it.
"""

import json
import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from dpo_helpers import data, dpo, finetune, lm
from dpo_helpers.finetune.trainer import Run
from dpo_helpers.lm import lora
from experiments import hh_rlhf
from ledger.config import configure

MODEL = "smollm2-135m"
BATCH = 32
WAYS = ("tree", "tree, bf16 weights", "padded", "TRL precomputed", "TRL")
# Learning rates, by whether LoRA is used. With LoRA, a few steps must change the loss visibly.
RATES = {False: 1e-5, True: 1e-3}
LORA = ("LoRA tree", "LoRA TRL precomputed", "LoRA TRL")


def batch() -> tuple[data.Behavior, str]:
    """The behavior whose first statements are the batch, and its source."""
    if data.at_hand("anthropic"):
        return data.load_behavior("subscribes-to-Buddhism", "anthropic"), "Persona"
    return data.load_behavior("keeps-promises"), "embedded sample"


def dialogues(model: lm.Model) -> tuple[list[dict[str, str]], str]:
    """The first pairs of chapter 8, or of the sample if they are not available; their source."""
    here = hh_rlhf.at_hand(configure({"tier": "book"}))
    where = "anthropic" if here else "sample"
    rows = list(data.load_pairs(where, hh_rlhf.SUBSET))
    if where == "sample":
        return rows[:BATCH], "the embedded sample"
    short = hh_rlhf.lengths(model, rows).max(1) <= hh_rlhf.LENGTH["book"]
    return [row for row, fits in zip(rows, short, strict=True) if fits][:BATCH], hh_rlhf.SUBSET


def tree(precision: str, adapter: bool = False) -> Iterator[float]:
    """Our steps with a token trie. Each ``yield`` after the first ends a step, with its loss."""
    model = lm.load(MODEL)
    if adapter:
        pairs = lm.pairs_from_text(lora.add(model, 0, dropout=0.0), dialogues(model)[0])
    else:
        pairs = lm.pairs_from_behaviors(model, [batch()[0]]).take(range(BATCH))
    settings = finetune.Settings(
        precision=precision,
        batch_size=BATCH,
        learning_rate=RATES[adapter],
        epochs=1000,  # a batch is all pairs, so that each epoch is one step on them
        save_every=0,
    )
    with tempfile.TemporaryDirectory() as out:
        run = Run(model, pairs, settings, Path(out))
        yield math.nan
        for line in run.steps():
            yield line["train"]["loss"][0]


def padded() -> Iterator[float]:
    """The same steps in plain code: right-padded prompts, Yes against No, stored reference."""
    model = lm.load(MODEL)
    network = model.network
    pairs = lm.pairs_from_behaviors(model, [batch()[0]]).take(range(BATCH))
    ends = torch.tensor([len(p) - 1 for p in pairs.prompts], device=network.device)
    ids = torch.zeros(BATCH, int(ends.max()) + 1, dtype=torch.long, device=network.device)
    for row, prompt in zip(ids, pairs.prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    mask = (torch.arange(ids.shape[1], device=network.device) <= ends[:, None]).long()
    sign = torch.tensor([1 if c == (model.yes,) else -1 for c in pairs.chosen])
    sign = sign.to(network.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, weight_decay=0.0, fused=True)

    def gaps() -> torch.Tensor:
        states = network.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
        states = states[torch.arange(BATCH), ends]
        rows = network.get_output_embeddings().weight[[model.yes, model.no]]
        return sign * (states @ (rows[0] - rows[1]))

    with torch.autocast(network.device.type, torch.bfloat16):
        with torch.no_grad():
            reference = gaps()
        loss = torch.tensor(math.nan)
        while True:
            yield loss.item()
            loss = dpo.loss(0.01 * (gaps() - reference)).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()


def trl(precompute: bool, adapter: bool = False) -> None:
    """TRL's trainer with its defaults (bf16). The reference is computed once, or in each step."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    model = lm.load(MODEL)
    peft = None
    if adapter:
        rows, _ = dialogues(model)
        peft = LoraConfig(
            r=lora.RANK,
            lora_alpha=lora.ALPHA,
            target_modules=list(lora.MATRICES),
            task_type="CAUSAL_LM",
        )
    else:
        behavior, _ = batch()
        answers = [("Yes", "No") if label > 0 else ("No", "Yes") for label in behavior.labels]
        rows = [
            {"prompt": prompt, "chosen": chosen, "rejected": rejected}
            for prompt, (chosen, rejected) in zip(behavior.prompts(), answers, strict=True)
        ]
    losses = []

    class Trainer(DPOTrainer):
        def compute_loss(self, *arguments: object, **named: object) -> torch.Tensor:
            loss = super().compute_loss(*arguments, **named)
            losses.append(loss.item())
            return loss

    class Turns(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            wait()

        def on_step_end(self, *_: object, **__: object) -> None:
            answer(losses[-1])

    with tempfile.TemporaryDirectory() as out:
        settings = DPOConfig(
            output_dir=out,
            per_device_train_batch_size=BATCH,
            max_steps=10**6,
            learning_rate=RATES[adapter],
            lr_scheduler_type="constant",
            beta=0.01,
            precompute_ref_log_probs=precompute,
            use_cpu=model.network.device.type == "cpu",
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model.network,
            args=settings,
            train_dataset=Dataset.from_list(rows[:BATCH]),
            processing_class=model.tokenizer,
            callbacks=[Turns()],
            peft_config=peft,
        )
        if adapter:  # start from the same A
            own = dict(trainer.model.named_parameters())
            for name, weight in lora.add(lm.load(MODEL), 0).network.named_parameters():
                if weight.requires_grad:
                    own[f"base_model.model.{name}"].data.copy_(weight)
        trainer.train()


def wait() -> None:
    """Wait until a step is requested. The end of standard input ends the process."""
    global began
    if not sys.stdin.readline():
        os._exit(0)
    began = time.perf_counter()


def answer(loss: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
    print(json.dumps([time.perf_counter() - began, peak, loss]), file=answers, flush=True)


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print too
    way = sys.argv[1]
    adapter = way.startswith("LoRA")
    if "TRL" in way:
        trl("precomputed" in way, adapter)
    steps = (
        padded() if way == "padded" else tree("bfloat16" if "bf16" in way else "autocast", adapter)
    )
    next(steps)
    while True:
        wait()
        answer(next(steps))
