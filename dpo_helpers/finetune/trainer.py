"""DPO of all parameters: one packed forward pass per microbatch, and only what the loss needs.

As the authors trained: one shuffle per epoch, batches of 32, the last one smaller where 32 does not
divide the data; AdamW at a constant learning rate without weight decay; gradients clipped to norm
1; held-out loss before every step. Tied embeddings are one matrix, which moves both as embedding
and as unembedding, as in ``transformers``.
"""

import dataclasses
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .. import lm
from ..dpo import loss
from ..errors import InputError
from ..lm import Pairs
from . import checkpoint, log
from .log import Curves, curves_from_log, group_means
from .memory import enough_memory
from .policy import Engine, compute_precision, network_sha256
from .reference import cached_log_ratios
from .settings import Settings, batches


def train(
    model: lm.Model,
    pairs: Pairs,
    settings: Settings,
    out: Path | str,
    held_out: Pairs | None = None,
    reference: tuple[np.ndarray, np.ndarray] | None = None,
    callback: Callable[[], Mapping[str, float]] | None = None,
    progress: bool = True,
) -> Curves:
    """Train the parameters of ``model.network`` that require a gradient, in place, on ``pairs``.

    The reference is the initial model, or ``reference``: another model's log-ratios of ``pairs``
    and of ``held_out``, as ``reference_log_ratios`` returns them. ``callback`` is called whenever
    the held-out pairs are evaluated, and what it returns is logged beside them.

    The folder ``out`` receives ``metrics.jsonl``, a line per step, and ``checkpoint.safetensors``.
    Called again with the same model, data and settings, the run resumes from there, on the CPU in
    float32 to bitwise the same numbers; a finished run is read back. A folder that holds another
    run is an error, except inside the cache, where that run is deleted. Without checkpoints
    (``save_every`` = 0) a run starts again from its first step.

    Raises InputError for a batch larger than the data, a folder that holds another run, a damaged
    checkpoint, a full disk, a loss that is not finite, and too little memory.
    """
    network = model.network
    try:
        with torch.random.fork_rng([network.device] if network.device.type == "cuda" else []):
            torch.manual_seed(settings.seed)  # of dropout, where a network has it
            run = Run(model, pairs, settings, Path(out), held_out, reference, callback)
            total, hidden = len(run.batches), not (progress and run.engine.is_main)
            with tqdm(
                total=total, initial=run.start, desc="DPO", unit="step", disable=hidden
            ) as bar:
                for line in run.steps():
                    values = {n: np.array(line["train"][n], float) for n in ("loss", "accuracy")}
                    bar.set_postfix({n: f"{np.nanmean(x):.3g}" for n, x in values.items()})
                    bar.update()
            return curves_from_log(run.lines, run.groups, total)
    finally:
        network.activation_checkpointing_disable()
        network.eval()


class Run:
    """A run of training in a folder: all that its steps share, and the steps."""

    def __init__(
        self,
        model: lm.Model,
        pairs: Pairs,
        settings: Settings,
        out: Path,
        held_out: Pairs | None = None,
        reference: tuple[np.ndarray, np.ndarray] | None = None,
        callback: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        self.batches = batches(len(pairs), settings)
        self.settings, self.pairs, self.callback = settings, pairs, callback
        self.groups = 1 + int(max(p.group.max() for p in (pairs, held_out) if p is not None))
        network = model.network.float()
        self.key = dataclasses.asdict(settings) | {
            "weights": network_sha256(network),
            "pairs": pairs.sha256,
            "held_out": held_out.sha256 if held_out is not None else "",
        }
        del self.key["save_every"]
        if reference is not None:
            content = b"".join(np.asarray(part, np.float32).tobytes() for part in reference)
            self.key["reference"] = hashlib.sha256(content).hexdigest()

        if settings.checkpointing:
            network.activation_checkpointing_enable()
        self.engine = Engine(network, settings)
        self.held_out = held_out if settings.evaluate_every else None
        parts = [pairs] if self.held_out is None else [pairs, self.held_out]
        self.references = reference or [  # log-ratios of the pairs, and of the held-out pairs
            cached_log_ratios(self.engine, self.key["weights"], part, settings) for part in parts
        ]
        self.log, self.checkpoint = out / log.FILE, out / checkpoint.FILE
        self.start, self.lines = self._resume(model.name)

    def _resume(self, name: str) -> tuple[int, list[dict]]:
        """Restore the last checkpoint: the number of steps taken, and what is logged of them."""
        engine, processes = self.engine, self.engine.accelerator.num_processes
        head = {"key": self.key, "model": name, "torch": torch.__version__, "processes": processes}
        recorded, *lines = log.read(self.log) or [head]
        if recorded["key"] != self.key and self.log.is_relative_to(lm.cache_dir()):
            shutil.rmtree(self.log.parent)
            recorded, lines = head, []
        saved, start = checkpoint.metadata(self.checkpoint), 0
        log.check_key(self.log.parent, (saved or recorded)["key"], self.key)
        if saved is not None:
            start = saved["step"]
            tensors = checkpoint.read(self.checkpoint)
            checkpoint.load_state_dict(tensors, engine.policy, engine.optimizer)
        last = start if start == len(self.batches) else start - 1
        lines = [line for line in lines if line["step"] <= last]
        engine.accelerator.wait_for_everyone()  # until all have read the log
        if engine.is_main:
            log.write(self.log, [head, *lines])
        return start, lines

    def steps(self) -> Iterator[dict]:
        """Train to the end; yields what each step logs."""
        settings, engine, total = self.settings, self.engine, len(self.batches)
        for t in range(self.start, total):
            members = self.batches[t]
            batch = self.pairs.take(members)
            with enough_memory(t, engine.network, batch, settings):
                line = {"step": t} | self._evaluate(t)
                rng_state, began = checkpoint.rng_state(), time.perf_counter()

                # The gradient of the batch's mean loss, a microbatch at a time.
                reference = torch.tensor(self.references[0][members], device=engine.network.device)
                log_ratio = torch.zeros_like(reference)
                engine.policy.train()
                for rows, counts in engine.microbatches(batch):
                    with compute_precision(engine.network, engine.precision):
                        found = engine.policy(batch.take(rows))
                        margins = settings.beta * (found - reference[rows])
                        # Gradients are averaged over processes: each scales its share of the mean.
                        share = counts * engine.accelerator.num_processes / len(batch)
                        engine.accelerator.backward(share * loss(margins).sum())
                    log_ratio[rows] += counts * found.detach()
                grad_norm = engine.clip_gradient(settings.max_grad_norm)
                measured = self._measured(engine.sum(log_ratio), self.references[0][members], batch)
                line |= {"train": measured, "grad_norm": grad_norm}
                seconds = time.perf_counter() - began

                # Save the weights that this step found good, before it changes them.
                self._check_finite(t, grad_norm, *measured["loss"])
                if settings.save_every and t % settings.save_every == 0 and t > self.start:
                    self._save(t, rng_state)

                began = time.perf_counter()
                engine.optimizer.step()
                engine.optimizer.zero_grad()
                line["seconds"] = round(seconds + time.perf_counter() - began, 4)
            self._record(line)
            yield line
        if not self.lines or self.lines[-1]["step"] < total:  # else it is finished already
            self._check_finite(total, *engine.log_ratios(self.pairs.take(self.batches[-1])))
            self._record({"step": total} | self._evaluate(total))
            if settings.save_every:
                self._save(total, checkpoint.rng_state())

    def _evaluate(self, t: int) -> dict:
        """What is measured of the held-out pairs after t steps; empty unless this is due."""
        every, total = self.settings.evaluate_every, len(self.batches)
        if self.held_out is None or (t % every and t < total):
            return {}
        log_ratio = self.engine.log_ratios(self.held_out)
        measured = self._measured(log_ratio, self.references[1], self.held_out)
        self._check_finite(t, *measured["loss"])
        logged = self.callback() if self.callback else {}
        logged = {name: float(value) for name, value in logged.items()}
        return {"held_out": measured} | ({"logged": logged} if logged else {})

    def _measured(self, log_ratio: np.ndarray, reference: np.ndarray, pairs: Pairs) -> dict:
        return group_means(log_ratio, reference, pairs.group, self.groups, self.settings.beta)

    def _record(self, line: dict) -> None:
        self.lines.append(line)
        if self.engine.is_main:
            log.append(self.log, line)

    def _save(self, t: int, rng_state: dict) -> None:
        tensors = checkpoint.state_dict(self.engine.policy, self.engine.optimizer) | rng_state
        if self.engine.is_main:
            checkpoint.write(self.checkpoint, tensors, {"key": self.key, "step": t})

    def _check_finite(self, t: int, *values: float | None) -> None:
        """Raises InputError if a loss, a log-ratio, or the norm of the gradient is not finite."""
        if not np.isfinite([value for value in values if value is not None]).all():
            raise InputError(
                f"step {t}: the loss or its gradient is not finite; lower learning_rate (now "
                f"{self.settings.learning_rate:g}) or beta; checkpoint {self.checkpoint}: "
                f"{_kept(self.checkpoint)}"
            )


def _kept(path: Path) -> str:
    saved = checkpoint.metadata(path)
    return f"the one of step {saved['step']} is kept" if saved else "there is none yet"
