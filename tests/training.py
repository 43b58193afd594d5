"""What the tests of training share: tiny models, runs that stop, equal curves, TRL's trainer."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dpo_helpers import lm
from dpo_helpers.finetune import Curves, Settings


def load(name: str = "tiny-llama", embeddings: float = 10) -> lm.Model:
    """A tiny model with larger weights, so that gaps differ, attention matters, and losses move."""
    model = lm.load(name, "cpu")
    with torch.no_grad():
        for parameter, weight in model.network.named_parameters():
            weight *= 12 if "self_attn" in parameter and weight.ndim == 2 else 1
            weight *= embeddings if "embed_tokens" in parameter or "lm_head" in parameter else 1
    return model


def same(one: Curves, other: Curves, but: tuple[str, ...] = ("seconds",)) -> bool:
    """Whether two curves are bitwise the same, apart from some."""
    columns = [
        {f.name: getattr(curves, f.name) for f in dataclasses.fields(curves)} | curves.logged
        for curves in (one, other)
    ]
    names = [name for name in columns[0] if name not in (*but, "logged")]
    return one.logged.keys() == other.logged.keys() and all(
        np.array_equal(columns[0][name], columns[1][name], equal_nan=True) for name in names
    )


@contextlib.contextmanager
def stopped(step: int) -> Iterator[None]:
    """The training inside is interrupted before it updates the weights for the ``step``-th time."""

    class Stop(Exception):
        pass

    taken = iter(range(10**6))

    def stop(*_: object) -> None:
        if next(taken) == step:
            raise Stop

    handle = register_optimizer_step_pre_hook(stop)
    try:
        with pytest.raises(Stop):
            yield
    finally:
        handle.remove()


def trl_trainer(model: lm.Model, rows: lm.Pairs, settings: Settings, steps: int, **how: object):
    """TRL's DPOTrainer on our pairs, in our order, in float32; the losses of its steps to come."""
    pytest.importorskip("trl")
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    losses: list[float] = []

    class Trainer(DPOTrainer):
        def _prepare_dataset(self, dataset, *_):
            return dataset

        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def compute_loss(self, *arguments, **named):
            loss = super().compute_loss(*arguments, **named)
            losses.append(loss.item())
            return loss

    columns = {"prompt_ids": rows.prompts, "chosen_ids": rows.chosen, "rejected_ids": rows.rejected}
    arguments = DPOConfig(
        output_dir=os.environ["DPO_CACHE_DIR"],
        per_device_train_batch_size=settings.batch_size,
        max_steps=steps,
        beta=settings.beta,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    model.tokenizer.pad_token = model.tokenizer.eos_token
    trainer = Trainer(
        model.network,
        args=arguments,
        train_dataset=Dataset.from_dict({k: list(map(list, v)) for k, v in columns.items()}),
        processing_class=model.tokenizer,
        **how,
    )
    return trainer, losses
