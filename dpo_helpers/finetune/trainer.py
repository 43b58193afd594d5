"""DPO of all parameters: one packed forward pass a step, and nothing that the loss does not need.

As the authors trained: one shuffle an epoch, batches of 32, the last one smaller
where 32 does not divide the data; AdamW at a constant learning rate without
weight decay; gradients clipped to norm 1; held-out loss before every step. Tied
embeddings are one matrix, which moves as embedding and as unembedding, as in
``transformers``.

    python -m dpo_helpers.finetune --help
    accelerate launch --config_file configs/llama-2-7b.yaml -m dpo_helpers.finetune …
"""

import argparse
import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DistributedType, PartialState
from tqdm import tqdm

from .. import data, lm
from ..dpo import loss
from ..errors import InputError, unknown
from ..files import atomic_write
from ..lm import Pairs
from . import checkpoint, memory
from .policy import PRECISIONS, Policy, compute_precision, network_sha256


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run of full fine-tuning, apart from the model and the data.

    Weights and their updates are float32 whatever the precision.

    beta            β of eq. (4)
    learning_rate   of AdamW, constant
    batch_size      pairs a step
    epochs          passes over the data, each shuffled anew
    seed            of the shuffles, and of dropout where a network has it
    precision       "float32"; "autocast": matrix products in bf16, as the authors'; "bfloat16":
                    everything in bf16, with bf16 copies of the weights
    weight_decay    of AdamW
    max_grad_norm   largest norm of the gradient
    max_tree_tokens largest token tree; of a larger batch the gradient is summed up over several
    checkpointing   keep of each layer its input only, compute the rest again: less memory, slower
    evaluate_every  steps between two measurements of the held-out pairs, 0: never
    save_every      steps between two checkpoints, 0: only one at the end
    """

    beta: float = 0.01
    learning_rate: float = 1e-5
    batch_size: int = 32
    epochs: int = 1
    seed: int = 1234
    precision: str = "autocast"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_tree_tokens: int = 4096
    checkpointing: bool = False
    evaluate_every: int = 1
    save_every: int = 10

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, name = getattr(self, field.name), field.name
            kinds = (int, float) if field.type is float else (field.type,)
            if type(value) not in kinds:
                raise InputError(
                    f"setting {name} = {value!r}: must be of type {field.type.__name__}"
                )
            good = math.isfinite(value) and value > 0 if field.type is float else True
            if not good and (name, value) != ("weight_decay", 0):
                raise InputError(f"setting {name} = {value}: must be a positive number")
            low = 0 if name in ("seed", "evaluate_every", "save_every") else 1
            if field.type is int and value < low:
                raise InputError(f"setting {name} = {value}: must be at least {low}")
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)


@dataclass(frozen=True)
class Curves:
    """What was measured after t = 0 … T steps; NaN where nothing was.

    loss       (groups, 2, T + 1) mean −log σ(m): of the batch drawn for step t, before it is
               learned (0), and of all held-out pairs (1)
    margin     (groups, 2, T + 1) mean m
    gap        (groups, 2, T + 1) mean log π(y_w|x) − log π(y_l|x)
    accuracy   (groups, 2, T + 1) share of pairs whose preferred response is the likelier one
    grad_norm  (T,) norm of the gradient before it is clipped
    seconds    (T,) wall time of the step, the measurement of held-out pairs apart
    logged    what ``callback`` returned, by name: (T + 1,) each
    """

    loss: np.ndarray
    margin: np.ndarray
    gap: np.ndarray
    accuracy: np.ndarray
    grad_norm: np.ndarray
    seconds: np.ndarray
    logged: dict[str, np.ndarray]


def batches(n: int, settings: Settings) -> list[np.ndarray]:
    """The row numbers of each step's batch, for all epochs.

    Raises InputError if a batch is larger than the data.
    """
    if settings.batch_size > n:
        raise InputError(
            f"setting batch_size = {settings.batch_size}: there are only {n} pairs to train on; "
            f"set batch_size to {n} or less"
        )
    found = []
    for epoch in range(settings.epochs):
        order = np.random.default_rng([settings.seed, epoch]).permutation(n)
        found += [order[at : at + settings.batch_size] for at in range(0, n, settings.batch_size)]
    return found


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

    The reference is the model as it comes, or ``reference``: another's gaps on
    ``pairs`` and on ``held_out``, as ``reference_gaps`` has them. ``callback`` is
    called whenever held-out pairs are measured, and what it returns recorded
    beside them.

    Under ``out`` the run streams ``metrics.jsonl`` and keeps
    ``checkpoint.safetensors``. Called again with the same model, data and
    settings it goes on from there, on the CPU in float32 to bitwise the same
    numbers; a finished run is read back. What another run left is an error, but in
    the cache, where it makes room.

    Raises InputError for a batch larger than the data, a folder that holds
    another run, a damaged checkpoint, a full disk, a loss that is not finite,
    and too little memory.
    """
    run = _Run(model, pairs, held_out, settings, Path(out), reference, callback)
    head, *_ = _lines(run.log) or [{"key": run.key}]
    if head["key"] != run.key and Path(out).is_relative_to(lm.cache_dir()):
        shutil.rmtree(out)  # left by a run that was killed, and is not this one
    device = model.network.device
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(settings.seed)  # of dropout, where a network has it
            return run.train(progress)
    finally:
        model.network.activation_checkpointing_disable()
        model.network.eval()


def reference_log_ratios(model: lm.Model, pairs: Pairs, settings: Settings) -> np.ndarray:
    """log π(y_w|x) − log π(y_l|x) of each pair under ``model`` as it is, (n,) float32.

    Kept in the cache under their content. Raises InputError for a full disk and too little memory.
    """
    settings = dataclasses.replace(settings, batch_size=min(settings.batch_size, len(pairs)))
    return _Run(model, pairs, None, settings, Path(os.devnull)).reference


def restore(model: lm.Model, out: Path | str) -> lm.Model:
    """Put the weights that a run has come to into a fresh copy of the model that it began with.

    Raises InputError if there is no checkpoint, it is damaged, or of another network.
    """
    path = Path(out) / "checkpoint.safetensors"
    found = checkpoint.read(path)
    policy = Policy(model.network.float())
    own = {f"weight/{n}": w for n, w in policy.named_parameters() if w.requires_grad}
    theirs = {name: w for name, w in found.items() if name in own and w.shape == own[name].shape}
    if len(theirs) < len(own):
        raise InputError(f"{path}: is of another network than {model.name}; load the one it is of")
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(theirs[name])
    return model


class _Run:
    """One run of training: what its steps share."""

    def __init__(
        self,
        model: lm.Model,
        pairs: Pairs,
        held_out: Pairs | None,
        settings: Settings,
        out: Path,
        reference: tuple[np.ndarray, np.ndarray] | None = None,
        callback: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        self.settings, self.pairs, self.name, self.callback = settings, pairs, model.name, callback
        self.held_out = held_out if settings.evaluate_every else None
        self.checkpoint, self.log = out / "checkpoint.safetensors", out / "metrics.jsonl"
        self.batches = batches(len(pairs), settings)
        self.groups = 1 + int(max(p.group.max() for p in (pairs, held_out) if p is not None))

        self.network = model.network.float()
        several = int(os.environ.get("WORLD_SIZE", 1)) > 1  # under accelerate launch
        on_cpu = self.network.device.type == "cpu"
        self.team = Accelerator(cpu=on_cpu and not several, device_placement=several)
        self.precision = _agreed(settings.precision, self.team)
        policy = Policy(self.network)
        self.key = dataclasses.asdict(settings) | {
            "weights": network_sha256(self.network),
            "pairs": pairs.sha256,
            "held_out": held_out.sha256 if held_out is not None else "",
        }
        del self.key["save_every"]
        if reference is not None:
            content = b"".join(np.asarray(gaps, np.float32).tobytes() for gaps in reference)
            self.key["reference"] = hashlib.sha256(content).hexdigest()
        if settings.checkpointing:
            self.network.activation_checkpointing_enable()
        optimizer = torch.optim.AdamW(
            [weight for weight in policy.parameters() if weight.requires_grad],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.policy, self.optimizer = self.team.prepare(policy, optimizer)
        given = reference or (None, None)
        self.reference = self._reference(pairs) if given[0] is None else given[0]
        if self.held_out is not None:
            own = given[1] is None
            self.reference_held_out = self._reference(self.held_out) if own else given[1]

    def train(self, progress: bool) -> Curves:
        lines, start = self._resume()
        total, every = len(self.batches), self.settings.save_every
        shown = progress and self.team.is_main_process
        with tqdm(total=total, initial=start, desc="DPO", unit="step", disable=not shown) as bar:
            for t in range(start, total):
                line = {"step": t} | self._evaluated(t)
                random = checkpoint.rng_state()
                began = time.perf_counter()
                line |= self._gradient(t)
                seconds = time.perf_counter() - began
                self._finite(t, line["grad_norm"], *line["train"]["loss"])
                if every and t % every == 0 and t > start:
                    self._save(t, random)
                began = time.perf_counter()
                self._update(t)
                line["seconds"] = round(seconds + time.perf_counter() - began, 4)
                self._record(line, lines)
                names = ("loss", "accuracy")
                bar.set_postfix({n: f"{np.nanmean(_row(line['train'][n])):.3g}" for n in names})
                bar.update()
            if not lines or lines[-1]["step"] < total:
                self._finite(total, *self._gaps(self.pairs.take(self.batches[-1])))
                self._record({"step": total} | self._evaluated(total), lines)
                self._save(total, checkpoint.rng_state())
        return _curves(lines, self.groups, total)

    def _gradient(self, t: int) -> dict:
        """The gradient of the batch's mean loss, clipped; what was measured on the way."""
        members = self.batches[t]
        pairs, device = self.pairs.take(members), self.network.device
        reference = torch.tensor(self.reference[members], device=device)
        gap = torch.zeros_like(reference)
        self.policy.train()
        with self._enough_memory(t):
            for lot, counts in self._lots(pairs):
                with compute_precision(self.network, self.precision):
                    found = self.policy(pairs.take(lot))
                    margins = self.settings.beta * (found - reference[lot])
                    # The processes' gradients are averaged: each counts its part for all of them.
                    share = counts * self.team.num_processes / len(pairs)
                    self.team.backward(share * loss(margins).sum())
                gap[lot] += counts * found.detach()
            parameters = self.policy.parameters()
            norm = self.team.clip_grad_norm_(parameters, self.settings.max_grad_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        gap = self.team.reduce(gap, "sum").cpu().numpy()
        measured = self._measured(gap, self.reference[members], pairs.group)
        return {"train": measured, "grad_norm": norm.item()}

    def _update(self, t: int) -> None:
        with self._enough_memory(t):
            self.optimizer.step()
        self.optimizer.zero_grad()

    def _evaluated(self, t: int) -> dict:
        """What the held-out pairs measure after t steps, if they are due."""
        if self.held_out is None or (t % self.settings.evaluate_every and t < len(self.batches)):
            return {}
        gap = self._gaps(self.held_out)
        measured = self._measured(gap, self.reference_held_out, self.held_out.group)
        self._finite(t, *measured["loss"])
        logged = {
            name: float(value) for name, value in (self.callback() if self.callback else {}).items()
        }
        return {"held_out": measured} | ({"logged": logged} if logged else {})

    def _gaps(self, pairs: Pairs) -> np.ndarray:
        """log π(y_w|x) − log π(y_l|x) of each pair, (n,) float32, without gradients."""
        gap = torch.zeros(len(pairs), device=self.network.device)
        self.policy.eval()
        with torch.no_grad(), compute_precision(self.network, self.precision):
            for lot, counts in self._lots(pairs):
                gap[lot] += counts * self.policy(pairs.take(lot))
        return self.team.reduce(gap, "sum").cpu().numpy()

    def _lots(self, pairs: Pairs) -> list[tuple[np.ndarray, int]]:
        """This process's trees: numbers of their pairs, and 1.

        All processes have equally many, for they wait for each other at each:
        where there are not enough, one is done again and counts 0.
        """
        team, rows = self.team, np.arange(len(pairs))
        parts = [rows[process :: team.num_processes] for process in range(team.num_processes)]
        lots = [
            [part[lot] for lot in pairs.take(part).microbatches(self.settings.max_tree_tokens)]
            for part in parts
        ]
        mine = [(lot, 1) for lot in lots[team.process_index]]
        return mine + [(rows[:1], 0)] * (max(map(len, lots)) - len(mine))

    def _measured(self, gap: np.ndarray, reference: np.ndarray, group: np.ndarray) -> dict:
        """Means over the pairs of each group, None where it has none."""
        gap = gap.astype(np.float64)
        margins = self.settings.beta * (gap - reference)
        losses = loss(torch.from_numpy(margins)).numpy()
        values = {"loss": losses, "margin": margins, "gap": gap, "accuracy": gap > 0}
        members = [group == q for q in range(self.groups)]
        return {
            name: [float(value[m].mean()) if m.any() else None for m in members]
            for name, value in values.items()
        }

    def _reference(self, pairs: Pairs) -> np.ndarray:
        """The gaps of the policy as it is, (n,) float32; kept in the cache under their content."""
        content = [
            self.key["weights"],
            pairs.sha256,
            self.settings.precision,
            self.settings.max_tree_tokens,
        ]
        content = json.dumps([*content, _code_sha256()])
        name = hashlib.sha256(content.encode()).hexdigest()
        path = lm.cache_dir() / "reference" / f"{name}.npy"
        try:
            found = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            found = np.zeros(0, np.float32)
        here = torch.tensor(int(found.shape == (len(pairs),)), device=self.network.device)
        if self.team.reduce(here, "sum") < self.team.num_processes:
            with self._enough_memory(0):
                found = self._gaps(pairs)
            if self.team.is_main_process:
                blob = io.BytesIO()
                np.save(blob, found)
                with _writing(path, "set DPO_CACHE_DIR to another disk"):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    atomic_write(path, blob.getvalue())
        return found

    def _resume(self) -> tuple[list[dict], int]:
        """The lines recorded so far and the number of steps done; the state is set accordingly."""
        facts = checkpoint.metadata(self.checkpoint)
        key, *lines = _lines(self.log) or [facts or {"key": self.key}]
        if facts is not None:
            key = facts
        differs = [name for name, value in self.key.items() if key["key"].get(name) != value]
        if differs:
            told = ", ".join(
                f"{n} = {key['key'].get(n)!r}, here {self.key[n]!r}"
                if n in vars(self.settings)
                else n
                for n in differs
            )
            raise InputError(
                f"{self.log.parent}: holds another run (other {told}); choose another folder or "
                "delete this one"
            )
        start = 0
        if facts is not None:
            start = facts["step"]
            checkpoint.load_state_dict(
                checkpoint.read(self.checkpoint), self.policy, self.optimizer
            )
        last = start if start == len(self.batches) else start - 1
        lines = [line for line in lines if line["step"] <= last]
        self.team.wait_for_everyone()
        if self.team.is_main_process:
            head = {"key": self.key, "model": self.name, "torch": torch.__version__}
            head["processes"] = self.team.num_processes
            text = "".join(json.dumps(line) + "\n" for line in (head, *lines))
            with _writing(self.log):
                self.log.parent.mkdir(parents=True, exist_ok=True)
                atomic_write(self.log, text.encode())
        return lines, start

    def _record(self, line: dict, lines: list[dict]) -> None:
        lines.append(line)
        if self.team.is_main_process:
            with _writing(self.log), self.log.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def _save(self, step: int, random: dict) -> None:
        found = checkpoint.state_dict(self.policy, self.optimizer) | random
        if self.team.is_main_process:
            checkpoint.write(self.checkpoint, found, {"key": self.key, "step": step})

    def _finite(self, t: int, *values: float | None) -> None:
        """Raises InputError if a loss, a gap or the gradient is not finite."""
        if not np.isfinite([value for value in values if value is not None]).all():
            facts = checkpoint.metadata(self.checkpoint)
            kept = f"that of step {facts['step']} is kept" if facts else "there is none yet"
            raise InputError(
                f"step {t}: the loss or its gradient is not finite; lower learning_rate (now "
                f"{self.settings.learning_rate:g}) or beta; checkpoint {self.checkpoint}: {kept}"
            )

    @contextlib.contextmanager
    def _enough_memory(self, t: int) -> Iterator[None]:
        """Where memory runs out, raises InputError that says which setting would fit."""
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if type(error) is RuntimeError and "allocate memory" not in str(error):
                raise
            raise InputError(f"step {t}: out of memory; {self._remedy(self.batches[t])}") from None

    def _remedy(self, members: np.ndarray) -> str:
        """The fastest settings whose need is within nine tenths of what there is."""
        there = memory.available(self.network.device.type)
        pairs = self.pairs.take(members)
        size, now = len(pairs.trie().tokens), self.settings
        for checkpointing in sorted({now.checkpointing, True}):
            for part in (1, 2, 4, 8):
                tokens = min(now.max_tree_tokens, size) // part
                if checkpointing == now.checkpointing and part == 1:
                    continue
                lots = [pairs.take(lot) for lot in pairs.microbatches(tokens)]
                largest = max(lots, key=lambda lot: len(lot.trie().tokens))
                need = memory.estimate(
                    self.network.config, largest, now.precision, checkpointing
                ).total
                if need < 0.9 * there:
                    return (
                        f"set max_tree_tokens = {tokens}, checkpointing = {checkpointing}: about "
                        f"{need / 1e9:.1f} GB of {there / 1e9:.1f}"
                    )
        return (
            f"nothing fits in {there / 1e9:.1f} GB; choose a smaller model or more GPUs (configs/)"
        )


def _code_sha256() -> str:
    """Of all code that a forward pass may use, so that no reference is kept that it did not make."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _agreed(precision: str, team: Accelerator) -> str:
    """The precision left to compute in here, where shards may do it for themselves.

    Raises InputError if accelerate was told another one.
    """
    sharded = team.distributed_type == DistributedType.FSDP
    expected = "bf16" if sharded and precision == "bfloat16" else "no"
    if team.mixed_precision != expected:
        raise InputError(
            f"setting precision = {precision!r}: accelerate's mixed_precision is "
            f"{team.mixed_precision}; set it to {expected}"
        )
    return "float32" if expected == "bf16" else precision


@contextlib.contextmanager
def _writing(path: Path, remedy: str = "free some space and run again") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); {remedy}"
        ) from None


def _lines(path: Path) -> list[dict]:
    """The whole lines of a run's record; a last one that a kill cut short is left out."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); choose another folder"
        ) from None
    try:
        return [json.loads(line) for line in text.splitlines(keepends=True) if line[-1] == "\n"]
    except ValueError as error:
        raise InputError(
            f"{path}: damaged ({error}); delete the folder, the run begins anew"
        ) from None


def _row(values: list[float | None]) -> np.ndarray:
    return np.array(values, float)


def _curves(lines: list[dict], groups: int, steps: int) -> Curves:
    found = {
        field.name: np.full(
            (steps,) if field.name in ("grad_norm", "seconds") else (groups, 2, steps + 1), np.nan
        )
        for field in dataclasses.fields(Curves)
        if field.name != "logged"
    }
    logged: dict[str, np.ndarray] = {}
    for line in lines:
        for at, part in enumerate(("train", "held_out")):
            for name, values in line.get(part, {}).items():
                found[name][:, at, line["step"]] = _row(values)
        for name in ("grad_norm", "seconds"):
            if name in line:
                found[name][line["step"]] = line[name]
        for name, value in line.get("logged", {}).items():
            logged.setdefault(name, np.full(steps + 1, np.nan))[line["step"]] = value
    return Curves(**found, logged=logged)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the command line says; under ``accelerate launch``, on all its processes."""
    parser = argparse.ArgumentParser(
        prog="python -m dpo_helpers.finetune", description=main.__doc__
    )
    parser.add_argument("out", type=Path, help="folder of the run; it goes on where it stopped")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", default="sample")
    parser.add_argument("--behavior", action="append", help="of Persona; several make a mixture")
    parser.add_argument("--pairs", help="a subset of HH-RLHF instead, as harmless-base")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true", help="by torch.compile, before step 1")
    for field in dataclasses.fields(Settings):
        kind = dict(action=argparse.BooleanOptionalAction)
        kind = kind if field.type is bool else dict(type=field.type)
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=field.default, **kind)
    given = vars(parser.parse_args(arguments))
    settings = Settings(**{f.name: given[f.name] for f in dataclasses.fields(Settings)})
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    model = lm.load(given["model"], "cpu" if several else given["device"])
    if given["pairs"]:
        pairs = lm.pairs_from_text(model, data.load_pairs(given["data"], given["pairs"]))
    elif given["behavior"]:
        behaviors = [data.load_behavior(name, given["data"]) for name in given["behavior"]]
        pairs = lm.pairs_from_behaviors(model, behaviors)
    else:
        raise InputError("nothing to train on; name --behavior or --pairs")
    if given["compile"]:
        model.network.base_model.compile(dynamic=True)  # trees change their shape at each step
    learned, held_out = pairs.split()
    curves = train(model, learned, settings, given["out"], held_out)
    last = [f"{value:.4f}" for value in curves.loss[:, 1, -1]]
    PartialState().print(
        f"held-out loss {', '.join(last)} after {len(curves.seconds)} steps: {given['out']}"
    )
