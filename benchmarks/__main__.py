"""Run the benchmarks, print one JSON object per line, and write ``benchmarks/latest.json``."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from dpo_helpers import dpo, last_layer, lm, theory
from dpo_helpers.data import at_hand, load_behavior
from dpo_helpers.files import atomic_write
from dpo_helpers.finetune import memory
from dpo_helpers.lm import lora
from dpo_helpers.states import hidden_states, pack
from dpo_helpers.theory import certificate, synthetic
from experiments import hh_rlhf
from ledger.config import TIERS

from . import steps

ROUNDS = 3
MODEL = "smollm2-135m"


def seconds(*runs: Callable[[], object]) -> list[float]:
    """The median wall time of each run. The runs take turns."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for run, taken in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def statements() -> tuple[list[str], str]:
    """About 1,000 Persona prompts and their source: Anthropic's if available, else the sample's."""
    if at_hand("anthropic"):
        return load_behavior("subscribes-to-Buddhism", "anthropic").prompts(), "Persona"
    names = (*TIERS["smoke"]["behaviors"], TIERS["smoke"]["calibration"])
    return [p for name in names for p in load_behavior(name).prompts()], "embedded sample"


def matrix_rate(device: str = "cpu") -> float:
    """The FLOP/s of a large bf16 matrix product on a device."""
    size = 2048 if device == "cpu" else 8192
    a = torch.randn(size, size, device=device).bfloat16()
    product = torch.empty_like(a)

    def products() -> None:
        for _ in range(10):
            torch.matmul(a, a, out=product)
        product[0, 0].item()  # wait until they are done

    products()
    (taken,) = seconds(products)
    return 10 * 2 * size**3 / taken


def hidden() -> list[dict]:
    """Hidden states in bf16: token tries, single statements, and sorted padded batches."""
    model = lm.load(MODEL, "cpu", "bfloat16")
    prompts, source = statements()
    ids = model.tokenizer(prompts).input_ids
    body = model.network.base_model

    def one_by_one() -> None:
        with torch.inference_mode():
            for sequence in ids:
                _ = body(input_ids=torch.tensor(sequence)[None], use_cache=False)

    def padded() -> None:
        order = sorted(ids, key=len)
        with torch.inference_mode():
            for at in range(0, len(order), 64):
                batch = {"input_ids": order[at : at + 64]}
                batch = model.tokenizer.pad(batch, return_tensors="pt")
                _ = body(**batch, use_cache=False)

    hidden_states(model, prompts[:64])  # the first calls are slower
    trees, alone, batches = seconds(lambda: hidden_states(model, prompts), one_by_one, padded)
    nodes = sum(len(tree.tokens) for _, tree in pack(ids, 1024))
    inner = sum(p.numel() for n, p in body.named_parameters() if p.ndim == 2 and "embed" not in n)
    share = 2 * inner * nodes / trees / matrix_rate()
    note = (
        f"{len(prompts)} statements ({source}), bf16, {torch.get_num_threads()} threads; "
        f"{sum(map(len, ids))} tokens, {nodes} in the trees; {share:.0%} of the bf16 matrix rate"
    )
    return [
        row("hidden states", trees, "one statement at a time", alone, note),
        row("hidden states", trees, "length-sorted padded batches of 64", batches, note),
    ]


def training() -> list[dict]:
    """100 last-layer steps on one behavior: two rows, or a dense V × d unembedding."""
    model = lm.load(MODEL, "cpu")
    prompts, source = statements()
    g = hidden_states(model, prompts)
    labels = np.where(np.arange(len(g)) % 2, 1, -1)
    problem = last_layer.Problem(g, labels, np.arange(len(g)) % 10 > 0)
    boundary = np.subtract(*model.unembedding_rows().numpy())
    settings = dict(beta=0.01, learning_rate=10.0, steps=100, batch_size=128)

    rows, sign = torch.tensor(g), torch.tensor(labels)
    train = torch.tensor(problem.train).nonzero().flatten()
    unembedding = torch.nn.Linear(g.shape[1], model.network.config.vocab_size, bias=False)
    unembedding.weight.data.copy_(model.network.get_output_embeddings().weight)
    answers = [model.yes, model.no]
    with torch.no_grad():
        reference = torch.cat([unembedding(c).log_softmax(-1)[:, answers] for c in rows.split(100)])

    def dense(steps: int = 100) -> None:
        optimizer = torch.optim.SGD(unembedding.parameters(), lr=settings["learning_rate"])
        for _ in range(steps):
            batch = train[torch.randperm(len(train))[:128]]
            ratio = unembedding(rows[batch]).log_softmax(-1)[:, answers] - reference[batch]
            margins = settings["beta"] * sign[batch] * (ratio[:, 0] - ratio[:, 1])
            optimizer.zero_grad()
            dpo.loss(margins).mean().backward()
            optimizer.step()

    dense(3)
    repeats = 20  # a run takes milliseconds

    def ours() -> None:
        for _ in range(repeats):
            last_layer.train([problem], boundary, **settings)

    ours()
    taken, peer = seconds(ours, dense)
    note = (
        f"{len(g)} statements ({source}), d = {g.shape[1]}, V = "
        f"{model.network.config.vocab_size}, batches of 128; ours computes in float64, with the "
        "loss, accuracy and margin of all statements at each step; the peer computes in float32, "
        "with only the loss of the batch"
    )
    taken /= repeats
    return [
        row("last-layer training, 100 steps", taken, "dense unembedding by autograd", peer, note)
    ]


def certificates() -> list[dict]:
    """A certificate of 2,000 steps at d = 4096, and the same training, measured."""
    n, d, steps = 1000, 4096, 2000
    rng = np.random.default_rng(0)
    g, labels = synthetic.clouds(rng, n, 5 * np.eye(d)[0], common=0.8 * rng.normal(size=d))
    boundary = 0.03 * rng.normal(size=d)
    start = time.perf_counter()
    spectrum = theory.spectrum(g)
    once = time.perf_counter() - start
    settings = dict(beta=0.01, learning_rate=1 / (0.01**2 * spectrum.root[0] ** 2 / n), steps=steps)
    problem = last_layer.Problem(g, labels, np.ones(n, bool))

    def ours() -> None:
        certificate(g, labels, boundary, spectrum=spectrum, **settings)

    def trained() -> None:
        last_layer.train([problem], boundary, sampling="full", **settings)

    ours()
    taken, peer = seconds(ours, trained)
    note = (
        f"n = {n}, d = {d}, synthetic states, κ = 1; excludes the decomposition of the states, "
        f"{once:.2f} s, which is computed once for all labels, η and β"
    )
    return [row("certificate, 2,000 steps", taken, "gradient descent, measured", peer, note)]


def race(
    ways: Sequence[str], rates: list[float], device: str
) -> tuple[dict[str, float], dict[str, int], dict[str, list[float]]]:
    """For each way: median seconds per step, peak memory in bytes, and the losses of all steps.

    Each way runs in its own process. The processes take turns. ``rates`` collects the
    ``matrix_rate`` of the device, measured between rounds.
    """
    rates.append(matrix_rate(device))
    workers = {
        way: subprocess.Popen(
            [sys.executable, "-m", "benchmarks.steps", way],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for way in ways
    }
    losses: dict[str, list[float]] = {way: [] for way in ways}

    def step(way: str) -> tuple[float, int]:
        worker = workers[way]
        worker.stdin.write("\n")
        worker.stdin.flush()
        seconds, peak, loss = json.loads(worker.stdout.readline())
        losses[way].append(loss)
        return seconds, peak

    for way in workers:
        step(way)  # the first step allocates memory
    times: dict[str, list[float]] = {way: [] for way in workers}
    peaks: dict[str, int] = {}
    for _ in range(ROUNDS):
        for way, taken in times.items():
            found, peaks[way] = step(way)
            taken.append(found)
            print(f"{way}: {found:.2f} s, {peaks[way] / 1e9:.2f} GB", file=sys.stderr)
        rates.append(matrix_rate(device))
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return {way: statistics.median(found) for way, found in times.items()}, peaks, losses


def finetune() -> list[dict]:
    """A full fine-tuning step with a token trie, with padding, and with TRL."""
    device = lm.resolve_device("auto")
    rates: list[float] = []
    taken, peaks, _ = race(steps.WAYS, rates, device)

    model = lm.load(MODEL, "cpu")
    behavior, source = steps.batch()
    pairs = lm.pairs_from_behaviors(model, [behavior]).take(range(steps.BATCH))
    body = model.network.base_model.named_parameters()
    inner = sum(p.numel() for n, p in body if p.ndim == 2 and "embed" not in n)
    nodes = len(pairs.trie().tokens)
    rate = statistics.median(rates)
    need = memory.estimate(model.network.config, pairs, "autocast").total
    note = (
        f"{steps.BATCH} statements ({source}), bf16 autocast, {device}, "
        f"{torch.get_num_threads()} threads; {nodes} tokens in the tree, "
        f"{sum(map(len, pairs.prompts))} in the prompts; predicted memory {need / 1e9:.2f} GB"
    )
    more = {
        "ours_gb": round(peaks["tree"] / 1e9, 2),
        "rate_gflops": round(rate / 1e9),
        "share_of_rate": round(6 * inner * nodes / taken["tree"] / rate, 3),
    }
    return [
        row(
            "DPO step, all parameters",
            taken["tree"],
            way,
            taken[way],
            note,
            peer_gb=round(peaks[way] / 1e9, 2),
            **more,
        )
        for way in steps.WAYS[1:]
    ]


def adapters() -> list[dict]:
    """A LoRA step on dialogues with a token trie, and with TRL and peft; no dropout, the same A."""
    device = lm.resolve_device("auto")
    ours, *others = steps.LORA
    taken, peaks, losses = race(steps.LORA, [], device)
    model = lm.load(steps.MODEL, "cpu")
    rows, source = steps.dialogues(model)
    pairs = lm.pairs_from_text(model, rows)
    whole = 2 * len(pairs) * hh_rlhf.lengths(model, rows).max()
    note = (
        f"{len(pairs)} pairs of {source}, r = {lora.RANK} on {' and '.join(lora.MATRICES)}, bf16 "
        f"autocast, {device}, {torch.get_num_threads()} threads; {len(pairs.trie().tokens)} tokens "
        f"in the tree, {whole} in the padded batch; loss_off is the largest relative "
        f"difference of the losses over {ROUNDS + 1} steps, in which our loss ranges over "
        f"{np.ptp(losses[ours]):.4f}"
    )
    return [
        row(
            "DPO step, LoRA",
            taken[ours],
            way,
            taken[way],
            note,
            ours_gb=round(peaks[ours] / 1e9, 2),
            peer_gb=round(peaks[way] / 1e9, 2),
            loss_off=float(f"{off:.1e}"),
        )
        for way in others
        for off in [np.abs(np.divide(losses[ours], losses[way]) - 1).max()]
    ]


def row(name: str, ours: float, peer_name: str, peer: float, note: str, **more: float) -> dict:
    """One measurement; it is also printed."""
    found = {
        "name": name,
        "ours_s": round(ours, 4),
        "peer": peer_name,
        "peer_s": round(peer, 4),
        "ratio": round(peer / ours, 2),
        **more,
        "note": note,
    }
    print(json.dumps(found), flush=True)
    return found


PARTS = {
    "training": training,
    "hidden": hidden,
    "certificate": certificates,
    "finetune": finetune,
    "lora": adapters,
}

if __name__ == "__main__":  # python -m benchmarks [training] [hidden] …
    latest = Path(__file__).parent / "latest.json"
    rows = json.loads(latest.read_text()) if latest.exists() else []
    for part in sys.argv[1:] or PARTS:
        new = PARTS[part]()
        names = {found["name"] for found in new}
        rows = [found for found in rows if found["name"] not in names] + new
        text = "[\n" + ",\n".join(" " + json.dumps(found) for found in rows) + "\n]\n"
        atomic_write(latest, text.encode())
