"""Full fine-tuning against TRL and a plain padded forward pass, its kills, its faults."""

import contextlib
import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from errors import files_up_to, line
from safetensors.torch import load_file, save_file
from torch.optim.optimizer import register_optimizer_step_pre_hook
from training import load, same, stopped, trl_trainer

from dpo_helpers import data, dpo, finetune, lm
from dpo_helpers.finetune import (
    Settings,
    batches,
    checkpoint,
    compute_precision,
    memory,
    network_sha256,
    restore,
    train,
)
from dpo_helpers.finetune.__main__ import main
from dpo_helpers.finetune.policy import Engine
from ledger.keys import PROJECT, Code, Unit

TINY = ("tiny-llama", "tiny-mistral", "tiny-gemma")
FAST = dict(precision="float32", learning_rate=1e-3, beta=0.1)

pytestmark = pytest.mark.usefixtures("one_thread", "cache")


def one_token(model, behaviors=("keeps-promises",)):
    return lm.pairs_from_behaviors(model, [data.load_behavior(b) for b in behaviors])


def long(model):
    """The sample's pairs of dialogues."""
    return lm.pairs_from_text(model, data.load_pairs())


def padded(network, pairs):
    """Gaps from a plain right-padded forward pass and all logits."""
    whole = [
        p + y
        for ys in (pairs.chosen, pairs.rejected)
        for p, y in zip(pairs.prompts, ys, strict=True)
    ]
    length = max(map(len, whole))
    ids = torch.tensor([[*w, *[0] * (length - len(w))] for w in whole])
    mask = torch.tensor([[1] * len(w) + [0] * (length - len(w)) for w in whole])
    log = network(input_ids=ids, attention_mask=mask, use_cache=False).logits.log_softmax(-1)
    picked = log[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    sums = [
        row[len(p) - 1 : len(w) - 1].sum()
        for row, p, w in zip(picked, pairs.prompts * 2, whole, strict=True)
    ]
    chosen, rejected = torch.stack(sums).chunk(2)
    return chosen - rejected


# It is right.


@pytest.mark.parametrize("kind", [one_token, long])
@pytest.mark.parametrize("name", TINY)
def test_gaps_and_gradients_equal_a_padded_forward_pass(name, kind):
    model = load(name)
    pairs = kind(model).take(range(8))
    network = model.network

    def gradients(gap):
        network.zero_grad()
        dpo.loss(0.01 * gap).mean().backward()
        return {n: p.grad.clone() for n, p in network.named_parameters()}

    want = padded(network, pairs)
    found = lm.log_ratios(network, pairs)
    assert found.dtype == torch.float32
    scale = want.abs().max()
    torch.testing.assert_close(0.01 * found, 0.01 * want, rtol=1e-5, atol=1e-4)
    assert scale > 1 and want.std() > 0.1, "the pairs are told apart"
    want, found = gradients(want), gradients(found)
    for n in want:
        torch.testing.assert_close(found[n], want[n], rtol=1e-4, atol=1e-4 * want[n].norm().item())


def test_one_token_responses_need_two_rows_only():
    """No normalizer, no other row of an untied unembedding; of a dialogue, all rows."""
    model = load()
    head = model.network.lm_head.weight
    for pairs, rows in (
        (one_token(model).take(range(4)), [model.yes, model.no]),
        (long(model).take([0]), None),
    ):
        model.network.zero_grad()
        lm.log_ratios(model.network, pairs).sum().backward()
        touched = head.grad.norm(dim=1).nonzero().flatten().tolist()
        assert touched == sorted(rows) if rows else len(touched) == len(head)


def test_shared_beginnings_of_two_responses_cancel():
    model = load()
    one = lm.Pairs(((1, 2, 3),), ((7, 8, 9),), ((7, 8, 5),), np.zeros(1, int))
    cut = lm.Pairs(((1, 2, 3, 7, 8),), ((9,),), ((5,),), np.zeros(1, int))
    logits, normalizers = lm.log_ratio_terms(one.trie(), one)
    assert len(logits) == 2 and not normalizers
    torch.testing.assert_close(*(lm.log_ratios(model.network, p) for p in (one, cut)))


def test_chunks_of_the_vocabulary_change_nothing(monkeypatch):
    model = load("tiny-gemma")
    pairs = long(model).take(range(3))
    found = []
    for chunk in (1, 7, 10**6):
        monkeypatch.setattr(lm.responses, "CHUNK", chunk)
        model.network.zero_grad()
        gap = lm.log_ratios(model.network, pairs)
        gap.sum().backward()
        found.append((gap.detach(), model.network.lm_head.weight.grad.clone()))
    for gap, gradient in found[1:]:
        torch.testing.assert_close(gap, found[0][0], rtol=1e-6, atol=1e-4)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-4, atol=1e-3)


def test_pairs():
    model = load()
    pairs = one_token(model, ("keeps-promises", "loves-gardening"))
    learned, held_out = pairs.split()
    assert (len(learned), len(held_out)) == (180, 20)
    assert np.bincount(learned.group).tolist() == [90, 90]
    rows = data.split(100)[0] + 100
    assert learned.prompts[90:] == pairs.take(rows).prompts
    assert pairs.flipped().chosen == pairs.rejected
    assert pairs.flipped().flipped().sha256 == pairs.sha256 != pairs.flipped().sha256
    for lots, most in ((pairs.microbatches(200), 200), (pairs.microbatches(1), None)):
        assert sorted(np.concatenate(lots)) == list(range(200))
        if most:
            assert all(len(pairs.take(lot).trie().tokens) <= most for lot in lots)


@pytest.mark.parametrize("name", TINY)
def test_texts_are_in_one_piece_and_closed(name):
    """Prompt and response are read together; the end-of-sequence token closes each response."""
    model = load(name)
    rows = list(data.load_pairs())
    pairs = lm.pairs_from_text(model, rows)
    tokenizer = model.tokenizer
    for what, found in (("chosen", pairs.chosen), ("rejected", pairs.rejected)):
        for row, prompt, response in zip(rows, pairs.prompts, found, strict=True):
            *whole, end = prompt + response
            assert end == tokenizer.eos_token_id and end not in response[:-1]
            assert whole == tokenizer(row["prompt"] + row[what])["input_ids"]


@contextlib.contextmanager
def watched(network, gradients):
    """Keeps the gradients by name that an optimizer is about to use, a dict a step."""

    def keep(*_):
        gradients.append({name: p.grad.clone() for name, p in network.named_parameters()})

    handle = register_optimizer_step_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", [one_token, long])
@pytest.mark.parametrize("name", TINY)
def test_equals_trl(name, kind, tmp_path):
    """Loss and gradients of the first five steps, relative 1e-4; the optimizers in step."""
    model = load(name)
    pairs = kind(model)
    size = 16 if kind is one_token else 4
    beta = 1.0 if kind is one_token else 0.1
    settings = Settings(precision="float32", learning_rate=1e-4, beta=beta, batch_size=size)
    order = np.concatenate(batches(len(pairs), settings)[:5])
    peer, reference = load(name), load(name).network
    trainer, want = trl_trainer(peer, pairs.take(order), settings, 5, ref_model=reference)
    gradients, want_gradients = [], []
    with watched(peer.network, want_gradients):
        trainer.train()
    with watched(model.network, gradients):
        curves = train(model, pairs, settings, tmp_path / "run", progress=False)
    np.testing.assert_allclose(curves.loss[0, 0, :5], want, rtol=1e-4)
    assert len(want_gradients) == 5
    assert max(want) - min(want) > 1e-3, "the losses move"
    for found, wanted in zip(gradients[:5], want_gradients, strict=True):
        assert found.keys() == wanted.keys()
        for weight, gradient in wanted.items():
            assert (found[weight] - gradient).norm() < 1e-4 * gradient.norm(), weight


def test_a_smaller_last_batch_has_its_own_mean(tmp_path):
    """The gradient of 5 pairs in batches of 3: of the last one, of the mean over its 2."""
    model, fresh = load(), load()
    pairs = long(fresh).take(range(5))
    settings = Settings(**FAST | dict(learning_rate=1e-12), batch_size=3, max_grad_norm=1e9)
    gradients = []
    with watched(model.network, gradients):
        train(model, pairs, settings, tmp_path / "run", progress=False)
    lots = batches(len(pairs), settings)
    assert [len(lot) for lot in lots] == [3, 2]
    for lot, found in zip(lots, gradients, strict=True):
        gap = padded(fresh.network, pairs.take(lot))
        fresh.network.zero_grad()
        dpo.loss(settings.beta * (gap - gap.detach())).mean().backward()
        for n, weight in fresh.network.named_parameters():
            assert (found[n] - weight.grad).norm() < 1e-4 * weight.grad.norm(), n


def test_held_out_loss_is_a_plain_evaluation(tmp_path):
    """And the batch's: −log σ(β (gap − reference gap)), by the padded pass of trained weights."""
    model, fresh = load("tiny-gemma"), load("tiny-gemma")
    learned, held_out = one_token(model, ("keeps-promises", "loves-gardening")).split()
    settings = Settings(**FAST, max_tree_tokens=100)
    curves = train(model, learned, settings, tmp_path / "run", held_out, progress=False)
    with torch.no_grad():
        for network, t in ((fresh.network, 0), (model.network, -1)):
            gap = padded(network, held_out)
            m = settings.beta * (gap - padded(fresh.network, held_out))
            for q in (0, 1):
                mine = torch.tensor(held_out.group == q)
                want = {
                    "loss": dpo.loss(m[mine]).mean(),
                    "margin": m[mine].mean(),
                    "gap": gap[mine].mean(),
                    "accuracy": (gap[mine] > 0).float().mean(),
                }
                for name, value in want.items():
                    found = getattr(curves, name)[q, 1, t]
                    assert found == pytest.approx(value.item(), abs=1e-4), (name, t)
    assert curves.loss.shape == (2, 2, 7)
    assert np.isnan(curves.loss[:, 0, -1]).all(), "no batch is drawn after the last step"
    assert abs(curves.loss[:, 1, -1] - np.log(2)).min() > 1e-3
    first = batches(len(learned), settings)[0]
    gap = padded(fresh.network, learned.take(first)).detach().numpy()
    for q in (0, 1):
        assert curves.gap[q, 0, 0] == pytest.approx(gap[learned.group[first] == q].mean(), abs=1e-4)


def test_another_reference(tmp_path):
    """Margins are measured from it; the model's own, given, changes nothing."""
    model, other = load(), load("tiny-mistral")
    learned, held_out = one_token(model).split()
    settings = Settings(**FAST)

    def run(name, reference):
        out = tmp_path / name
        return train(load(), learned, settings, out, held_out, reference, progress=False)

    own, foreign = (
        tuple(finetune.reference_log_ratios(which, part, settings) for part in (learned, held_out))
        for which in (model, other)
    )
    with torch.no_grad():
        assert np.allclose(foreign[1], padded(other.network, held_out).numpy(), atol=1e-4)
    plain, given, far = run("plain", None), run("given", own), run("far", foreign)
    assert same(plain, given)
    margin = settings.beta * (own[1] - foreign[1]).mean(dtype=np.float64)
    assert far.margin[0, 1, 0] == pytest.approx(margin, abs=1e-5) and abs(margin) > 0.01
    with torch.no_grad():
        m = settings.beta * (padded(load().network, held_out) - torch.tensor(foreign[1]))
    assert far.loss[0, 1, 0] == pytest.approx(dpo.loss(m).mean().item(), abs=1e-5)
    line(lambda: run("given", foreign), "holds another run", "reference")


def test_watched_is_recorded_beside_the_held_out_pairs(tmp_path):
    def run():
        model = load()
        learned, held_out = one_token(model).split()
        start = model.unembedding_rows()

        def watch():
            return {"moved": (model.unembedding_rows() - start).norm()}

        settings = Settings(**FAST, evaluate_every=2)
        curves = train(model, learned, settings, tmp_path, held_out, callback=watch, progress=False)
        return curves, watch()["moved"].item()

    first, last = run()
    assert same(first, run()[0]), "a finished run is read back"
    moved = first.logged["moved"]
    assert moved[0] == 0 and moved[2] > 0 and np.isnan(moved[1])
    assert moved[-1] == pytest.approx(last, rel=1e-6)


def test_what_requires_no_gradient_stays(tmp_path):
    """And is neither in the checkpoint nor asked for by ``restore``."""
    model, fresh = load(), load()
    for which in (model, fresh):
        which.network.get_output_embeddings().weight.requires_grad_(False)
    pairs = one_token(model)
    train(model, pairs, Settings(**FAST), tmp_path, progress=False)
    assert torch.equal(model.unembedding_rows(), fresh.unembedding_rows())
    names = checkpoint.read(tmp_path / "checkpoint.safetensors")
    assert not [name for name in names if "lm_head" in name]
    restored = restore(fresh, tmp_path).network.state_dict()
    for name, weight in model.network.state_dict().items():
        assert torch.equal(restored[name], weight), name


def test_a_group_that_a_batch_lacks_measures_nothing(tmp_path):
    model = load()
    pairs = one_token(model, ("keeps-promises", "loves-gardening")).take([0, 1, 150])
    curves = train(model, pairs, Settings(**FAST, batch_size=1), tmp_path, progress=False)
    assert np.isnan(curves.loss[:, 0, :3]).sum() == 3
    assert np.isnan(curves.loss[:, 1]).all(), "nothing is held out"


def test_batches():
    """One shuffle an epoch, every pair once, the last batch smaller; the seed decides."""
    found = batches(90, Settings(epochs=2))
    assert [len(batch) for batch in found] == [32, 32, 26, 32, 32, 26]
    one, two = np.concatenate(found[:3]), np.concatenate(found[3:])
    assert sorted(one) == sorted(two) == list(range(90))
    assert (one != two).any()
    assert (np.concatenate(batches(90, Settings())) == one).all()
    assert (np.concatenate(batches(90, Settings(seed=0))) != one).any()


@pytest.mark.parametrize("kind", [one_token, long])
def test_many_small_trees_are_one_large(tmp_path, kind):
    """The gradient summed over trees is that of the batch."""
    found = []
    for tokens in (10**6, 300, 1):
        model = load()
        pairs = kind(model).take(range(12))
        # Gaps of hundreds would leave float32 no digits for the comparison.
        short = {
            name: tuple(y[:9] for y in getattr(pairs, name)) for name in ("chosen", "rejected")
        }
        pairs = dataclasses.replace(pairs, **short)
        gradients = []
        settings = Settings(**FAST, max_tree_tokens=tokens, batch_size=6)
        with watched(model.network, gradients):
            curves = train(model, pairs, settings, tmp_path / str(tokens), progress=False)
        found.append((curves, gradients))
    (one, gradients), *others = found
    for curves, others_gradients in others:
        np.testing.assert_allclose(curves.loss[0, 0, 0], one.loss[0, 0, 0], rtol=1e-6)
        np.testing.assert_allclose(curves.loss, one.loss, rtol=1e-4)
        for name, want in gradients[0].items():
            assert (others_gradients[0][name] - want).norm() <= 1e-6 * want.norm() + 1e-9, name


@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16"])
@pytest.mark.parametrize("name", TINY)
def test_checkpointing_changes_nothing(tmp_path, name, precision):
    curves = []
    for checkpointing in (False, True):
        model = load(name)
        pairs = one_token(model)
        settings = Settings(**FAST | {"precision": precision}, checkpointing=checkpointing)
        layers = count_layers(model.network)
        curves.append(train(model, pairs, settings, tmp_path / str(checkpointing), progress=False))
        # Each step, twice where layers are computed again; the reference, once; the last check.
        steps = len(batches(len(pairs), settings))
        assert layers.total == 2 * (2 * steps + 1 if checkpointing else 1 + steps + 1)
        assert not model.network.is_activation_checkpointing
    assert same(*curves)


def count_layers(network):
    """Counts how often layers are computed."""

    class Count:
        total = 0

        def __call__(self, *_):
            self.total += 1

    count = Count()
    for layer in network.model.layers:
        layer.self_attn.register_forward_hook(count)
    return count


def test_small_updates_are_kept_where_pure_bf16_loses_them(tmp_path):
    """Updates of 1e-5 on weights of about 1: below what bf16 resolves, 4e-3."""
    rate = 1e-5
    model = load()
    weight = model.network.model.layers[0].input_layernorm.weight
    before = weight.detach().clone()
    assert before.abs().min() > 0.5
    settings = Settings(precision="bfloat16", learning_rate=rate, beta=1.0, epochs=4)
    train(model, one_token(model), settings, tmp_path, progress=False)
    assert weight.dtype == torch.float32
    moved = (weight - before).abs()
    assert rate < moved.median() < 20 * rate
    assert (weight.bfloat16() == before.bfloat16()).all(), "bf16 alone would stand still"


@pytest.mark.parametrize("precision", ["autocast", "bfloat16"])
@pytest.mark.parametrize("name", TINY)
def test_low_precision_is_close(tmp_path, name, precision):
    curves = {}
    for kind in ("float32", precision):
        model = load(name)
        settings = Settings(**FAST | {"precision": kind})
        curves[kind] = train(model, one_token(model), settings, tmp_path / kind, progress=False)
    one, other = curves.values()
    assert not same(one, other)
    np.testing.assert_allclose(other.gap[0, 0, 0], one.gap[0, 0, 0], atol=0.2)
    np.testing.assert_allclose(other.loss[0, 0], one.loss[0, 0], atol=0.02)
    np.testing.assert_allclose(other.grad_norm, one.grad_norm, rtol=0.2)


def test_the_weights_are_the_networks_own_again():
    model = load("tiny-gemma")
    before = dict(model.network.named_parameters())
    with pytest.raises(KeyError), compute_precision(model.network, "bfloat16"):
        assert model.network.dtype == torch.bfloat16
        assert model.network.lm_head.weight is model.network.model.embed_tokens.weight
        raise KeyError
    after = dict(model.network.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)


@pytest.mark.parametrize(("name", "tied"), [("tiny-gemma", True), ("tiny-llama", False)])
def test_tied_and_untied_unembeddings(tmp_path, name, tied):
    model = load(name)
    embedding = model.network.model.embed_tokens.weight
    before = embedding.detach().clone(), model.network.lm_head.weight.detach().clone()
    pairs = one_token(model)
    settings = Settings(**FAST)
    train(model, pairs, settings, tmp_path, progress=False)
    assert (model.network.lm_head.weight is embedding) == tied
    moved = [
        (now - then).norm(dim=1) > 0
        for now, then in zip((embedding, model.network.lm_head.weight), before, strict=True)
    ]
    read = sorted({token for prompt in pairs.prompts for token in prompt})
    rows = [model.yes, model.no]
    assert moved[0].nonzero().flatten().tolist() == (sorted({*read, *rows}) if tied else read)
    assert moved[1].nonzero().flatten().tolist() == (
        sorted({*read, *rows}) if tied else sorted(rows)
    )


def test_the_reference_is_computed_once(tmp_path, cache, monkeypatch):
    """Kept by content: the weights as they are, the tokens, the precision."""
    model = load()
    pairs = one_token(model)
    train(model, pairs, Settings(**FAST), tmp_path / "1", progress=False)
    (kept,) = (cache / "reference").iterdir()
    assert np.load(kept).dtype == np.float32
    np.testing.assert_allclose(
        np.load(kept), padded(load().network, pairs).detach(), rtol=0, atol=1e-3
    )

    def files(model, pairs, **changes):
        run = tmp_path / str(time.monotonic())
        train(model, pairs, Settings(**FAST | changes, evaluate_every=0), run, progress=False)
        return len(list((cache / "reference").iterdir()))

    assert files(load(), pairs, learning_rate=1e-4) == 1
    assert files(load(), pairs.flipped()) == 2
    assert files(load(), pairs, precision="bfloat16") == 3
    assert files(model, pairs) == 4, "trained weights are another reference"
    kept.write_bytes(b"damaged")
    again = train(load(), pairs, Settings(**FAST), tmp_path / "2", progress=False)
    assert again.margin[0, 0, 0] == pytest.approx(0, abs=1e-5)
    assert len(np.load(kept)) == len(pairs)


# It is not lost.


def interrupted(model, pairs, settings, out, held_out, step):
    """A run that stops at a step."""
    with stopped(step):
        train(model, pairs, settings, out, held_out, progress=False)


@pytest.mark.parametrize("step", [1, 4, 5])
@pytest.mark.parametrize("name", TINY)
def test_resumed_is_bitwise_uninterrupted(tmp_path, name, step):
    """Stopped before there is a checkpoint, right after one, and later."""
    settings = Settings(**FAST, batch_size=16, save_every=2, evaluate_every=3)
    learned, held_out = one_token(load(name)).split()
    whole = load(name)
    want = train(whole, learned, settings, tmp_path / "whole", held_out, progress=False)
    interrupted(load(name), learned, settings, tmp_path / "run", held_out, step)
    model = load(name)
    found = train(model, learned, settings, tmp_path / "run", held_out, progress=False)
    assert same(found, want)
    assert network_sha256(model.network) == network_sha256(whole.network)
    # A finished run is read back, without a step.
    model, record = load(name), (tmp_path / "run" / "metrics.jsonl").read_bytes()
    again = train(model, learned, settings, tmp_path / "run", held_out, progress=False)
    assert same(again, found, but=())
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == record
    assert network_sha256(model.network) == network_sha256(whole.network)
    assert network_sha256(restore(load(name), tmp_path / "run").network) == network_sha256(
        whole.network
    )


def test_dropout_is_resumed_too(tmp_path):
    """The state of the random numbers is part of a checkpoint."""

    def with_dropout():
        model = load()
        for layer in model.network.model.layers:
            layer.self_attn.attention_dropout = 0.5
        return model

    settings = Settings(**FAST, batch_size=16, save_every=2)
    pairs = one_token(load())
    torch.manual_seed(0)
    state = torch.get_rng_state()
    want = train(with_dropout(), pairs, settings, tmp_path / "whole", progress=False)
    assert (torch.get_rng_state() == state).all(), "the caller's random numbers are left alone"
    assert not same(train(load(), pairs, settings, tmp_path / "without", progress=False), want)
    interrupted(with_dropout(), pairs, settings, tmp_path / "run", None, 5)
    torch.manual_seed(1)
    assert same(train(with_dropout(), pairs, settings, tmp_path / "run", progress=False), want)


def test_a_checkpoint_holds_no_code(tmp_path):
    train(load(), one_token(load()), Settings(**FAST), tmp_path, progress=False)
    found = load_file(tmp_path / "checkpoint.safetensors")
    assert found["random"].dtype == torch.uint8
    assert {name.split("/")[0] for name in found} == {
        *("weight", "step", "exp_avg", "exp_avg_sq", "random")
    }
    assert checkpoint.metadata(tmp_path / "checkpoint.safetensors")["step"] == 4
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        *("checkpoint.safetensors", "metrics.jsonl")
    ]


def command(out, *more):
    """The command line of a small run."""
    words = f"-m dpo_helpers.finetune {out} --model tiny-llama --behavior keeps-promises"
    words += " --precision float32 --learning-rate 1e-3 --beta 0.1 --epochs 40 --save-every 5"
    return [sys.executable, *words.split(), *more]


def environment(cache):
    return os.environ | {"DPO_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}


def losses(out):
    lines = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    return [each["train"]["loss"][0] for each in lines if "train" in each]


@pytest.mark.slow
def test_killed_and_run_again(tmp_path, cache):
    """kill −9 in the middle, twice: the same numbers as in one go."""
    subprocess.run(command(tmp_path / "whole"), env=environment(cache), check=True)
    out = tmp_path / "run"
    for lines in (15, 60):
        process = subprocess.Popen(
            command(out), env=environment(cache), stderr=subprocess.DEVNULL, start_new_session=True
        )
        record = out / "metrics.jsonl"
        while process.poll() is None:
            if record.exists() and record.read_bytes().count(b"\n") > lines:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        assert process.wait() == -signal.SIGKILL
    subprocess.run(command(out), env=environment(cache), check=True)
    assert losses(out) == losses(tmp_path / "whole")
    assert len(losses(out)) == 120
    one, other = (load_file(o / "checkpoint.safetensors") for o in (out, tmp_path / "whole"))
    assert all((one[name] == other[name]).all() for name in other)


@pytest.mark.slow
def test_two_processes_are_one(tmp_path, cache):
    """accelerate launch, gloo: losses to 1e-5, also where a process has one tree more to do."""
    more = ("--max-tree-tokens", "200", "--epochs", "2")
    subprocess.run(command(tmp_path / "one", *more), env=environment(cache), check=True)
    launch = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    launch += " --dynamo_backend no --main_process_port 0"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"),
            *launch.split(),
            *command(tmp_path / "two", *more)[1:],
        ],
        env=environment(tmp_path / "other") | {"ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
    assert done.stdout.count("held-out loss") == 1


SHARDED = """
import torch
from accelerate import Accelerator
from torch.distributed.fsdp import fully_shard
from dpo_helpers.finetune.__main__ import main

def prepare(self, policy, optimizer):
    for layer in policy.network.model.layers:
        fully_shard(layer)
    fully_shard(policy)
    group = optimizer.param_groups[0]
    kept = {name: group[name] for name in ("lr", "weight_decay", "fused")}
    return policy, torch.optim.AdamW(policy.parameters(), **kept)

Accelerator.prepare = prepare  # accelerate itself shards on GPUs only
main()
"""


@pytest.mark.slow
def test_shards_are_one(tmp_path, cache):
    """Weights sharded over two processes, one of them tied: the same run, and it is resumed."""
    more = ("--model", "tiny-gemma", "--epochs", "2", "--checkpointing")
    subprocess.run(command(tmp_path / "one", *more), env=environment(cache), check=True)
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = command(tmp_path / "two", *more)[3:]
    for _ in range(2):  # the second finds it finished, and puts the checkpoint back
        done = subprocess.run(
            [*run, str(script), *arguments],
            env=environment(tmp_path / "other") | {"ACCELERATE_USE_CPU": "true"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
    found, want = (load_file(tmp_path / o / "checkpoint.safetensors") for o in ("two", "one"))
    assert found.keys() == want.keys()
    for weight in want.keys() - {"random"}:
        torch.testing.assert_close(found[weight], want[weight], rtol=0, atol=1e-4)


# What can go wrong.

BAD = {
    "beta": [0, -1.0, float("nan"), float("inf"), "0.1", None],
    "learning_rate": [0.0, -1e-5, float("inf"), "rule", True],
    "batch_size": [0, -1, 1.5, "32", True],
    "epochs": [0],
    "max_tree_tokens": [0],
    "seed": [-1],
    "weight_decay": [-0.1],
    "max_grad_norm": [0.0],
    "checkpointing": [1, "yes"],
    "evaluate_every": [-1],
    "save_every": [-1],
    "precision": ["fp32", "bf16", 32],
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings(name):
    for value in BAD[name]:
        line(lambda value=value: Settings(**{name: value}), name, str(value))


def test_a_batch_larger_than_the_data(tmp_path):
    model = load()
    pairs = one_token(model).take(range(20))
    line(lambda: train(model, pairs, Settings(), tmp_path / "run"), "batch_size = 32", "20 pairs")
    assert not (tmp_path / "run").exists()


def test_bad_pairs():
    model = load()
    row = {"prompt": "Is it?\n\nAssistant:", "chosen": " Yes", "rejected": " Yes"}
    line(lambda: lm.pairs_from_text(model, [row | {"rejected": " No"}, row]), "pair 2", "same")
    row["rejected"] = " No" * 600
    line(lambda: lm.pairs_from_text(model, [row]), "pair 1", "512", "tiny-llama")


def test_a_learning_rate_that_diverges(tmp_path):
    """The step is named, the last good checkpoint is kept, and so are the lines before."""
    model = load()
    pairs = one_token(model)
    good = Settings(**FAST, batch_size=10, save_every=2)
    seen = []

    def spoil(optimizer, *_):
        seen.append(optimizer)
        if len(seen) == 6:
            for group in optimizer.param_groups:
                group["lr"] = 1e30

    handle = register_optimizer_step_pre_hook(spoil)
    try:
        text = line(
            lambda: train(model, pairs, good, tmp_path / "run", progress=False),
            *("step 6", "not finite", "learning_rate", "step 4"),
        )
    finally:
        handle.remove()
    assert str(tmp_path / "run" / "checkpoint.safetensors") in text
    assert checkpoint.metadata(tmp_path / "run" / "checkpoint.safetensors")["step"] == 4
    assert len(losses(tmp_path / "run")) == 6
    # It goes on from there.
    found = train(load(), pairs, good, tmp_path / "run", progress=False)
    assert same(found, train(load(), pairs, good, tmp_path / "whole", progress=False))
    bad = dataclasses.replace(good, learning_rate=1e30)
    line(
        lambda: train(load(), pairs, bad, tmp_path / "bad", progress=False),
        *("step 1", "not finite", "now 1e+30", "there is none"),
    )


def test_a_last_step_that_diverges(tmp_path):
    """Weights that are not finite are never saved as good ones."""
    model = load()
    pairs = one_token(model)
    settings = Settings(**FAST | {"learning_rate": 1e38}, batch_size=100)
    line(lambda: train(model, pairs, settings, tmp_path, progress=False), "step 1", "not finite")
    assert not (tmp_path / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (dict(settings=dict(learning_rate=1e-4)), ["learning_rate = 0.001, here 0.0001"]),
        (dict(settings=dict(seed=7, epochs=2)), ["seed = 1234, here 7", "epochs = 1, here 2"]),
        (dict(model="tiny-mistral"), ["weights"]),
        (dict(flip=True), ["pairs"]),
        (dict(held_out=True), ["held_out"]),
    ],
)
@pytest.mark.parametrize("stopped", [None, 1])
def test_a_folder_of_another_run(tmp_path, change, parts, stopped):
    """Whether it has a checkpoint or only lines, it is refused and left as it is."""
    settings = Settings(**FAST)
    pairs = one_token(load())
    if stopped:
        interrupted(load(), pairs, settings, tmp_path, None, stopped)
    else:
        train(load(), pairs, settings, tmp_path, progress=False)
    files = [path for path in tmp_path.iterdir() if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    model = load(change.get("model", "tiny-llama"))
    others = dataclasses.replace(settings, **change.get("settings", {}))
    pairs = pairs.flipped() if change.get("flip") else pairs
    held_out = pairs if change.get("held_out") else None
    line(
        lambda: train(model, pairs, others, tmp_path, held_out, progress=False),
        *(str(tmp_path), "another run", "choose another", *parts),
    )
    assert {path: path.read_bytes() for path in before} == before
    if "model" in change and not stopped:
        line(lambda: restore(load("tiny-gemma"), tmp_path), "another network", "tiny-gemma")


@pytest.mark.parametrize("change", [dict(learning_rate=1e-4), dict(beta=0.5)])
@pytest.mark.parametrize("stopped", [None, 2])
def test_what_another_run_left_in_the_cache_makes_room(cache, change, stopped):
    settings = Settings(**FAST, save_every=1)
    pairs = one_token(load())
    out = cache / "training" / "0"
    if stopped:
        interrupted(load(), pairs, settings, out, None, stopped)
    else:
        train(load(), pairs, settings, out, progress=False)
    others = dataclasses.replace(settings, **change)
    found = train(load(), pairs, others, out, progress=False)
    assert same(found, train(load(), pairs, others, cache / "training" / "1", progress=False))


def test_other_intervals_of_saving_are_the_same_run(tmp_path):
    settings = Settings(**FAST, save_every=1)
    pairs = one_token(load())
    interrupted(load(), pairs, settings, tmp_path, None, 2)
    train(load(), pairs, dataclasses.replace(settings, save_every=0), tmp_path, progress=False)


@pytest.mark.parametrize("size", [0, 5, 1000])
def test_a_damaged_checkpoint(tmp_path, size):
    settings = Settings(**FAST)
    pairs = one_token(load())
    train(load(), pairs, settings, tmp_path, progress=False)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    for action in (
        lambda: train(load(), pairs, settings, tmp_path, progress=False),
        lambda: restore(load(), tmp_path),
    ):
        line(action, str(path), "no whole checkpoint", "delete")
    save_file({"x": torch.zeros(1)}, path)
    line(lambda: train(load(), pairs, settings, tmp_path, progress=False), str(path), "delete")
    path.unlink()
    line(lambda: restore(load(), tmp_path), str(path))


def test_a_torn_and_a_damaged_record(tmp_path):
    settings = Settings(**FAST, save_every=1)
    pairs = one_token(load())
    want = train(load(), pairs, settings, tmp_path / "whole", progress=False)
    out = tmp_path / "run"
    interrupted(load(), pairs, settings, out, None, 2)
    record = out / "metrics.jsonl"
    record.write_text(record.read_text() + '{"step": 2, "tr')
    assert same(train(load(), pairs, settings, out, progress=False), want)
    # Lines that were deleted are missed, and nothing else.
    full = record.read_text()
    record.write_text(full.splitlines(keepends=True)[0])
    found = train(load(), pairs, settings, out, progress=False)
    assert np.isnan(found.loss[0, 0]).all() and len(losses(out)) == 0
    record.write_text(full)
    record.write_text("not JSON\n" + record.read_text())
    line(lambda: train(load(), pairs, settings, out, progress=False), str(record), "damaged")


@pytest.mark.parametrize("size", [0, 300, 1500, 100_000])
def test_a_full_disk(tmp_path, size):
    """At the reference, the record, a line of it, a checkpoint: one line, and it goes on."""
    settings = Settings(**FAST, batch_size=20, save_every=2)
    pairs = one_token(load())
    want = train(load(), pairs, settings, tmp_path / "whole", progress=False)
    if size:
        train(load(), pairs, dataclasses.replace(settings, seed=0), tmp_path / "x", progress=False)
    elif (tmp_path / "cache").exists():
        for path in (tmp_path / "cache" / "reference").iterdir():
            path.unlink()
    out = tmp_path / "run"
    with files_up_to(size):
        line(
            lambda: train(load(), pairs, settings, out, progress=False),
            "written",
            "space" if size else "disk",
        )
    assert not list(out.glob("*.part"))
    assert same(train(load(), pairs, settings, out, progress=False), want)


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path):
    settings = Settings(**FAST, save_every=1)
    pairs = one_token(load())
    interrupted(load(), pairs, settings, tmp_path, None, 2)
    path = tmp_path / "checkpoint.safetensors"
    before = path.read_bytes()
    with files_up_to(100_000):
        line(
            lambda: train(load(), pairs, settings, tmp_path, progress=False),
            *(str(path), "the one before is kept"),
        )
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    model = load()
    line(
        lambda: train(model, one_token(model), Settings(**FAST), tmp_path / "file" / "run"),
        *(str(tmp_path / "file"), "cannot be"),
    )


@contextlib.contextmanager
def memory_up_to(more):
    """The process can grow by so many bytes only."""
    size = int(Path("/proc/self/status").read_text().split("VmSize:")[1].split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1024 * size + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="asks Linux how large it is")
def test_memory_really_runs_out(tmp_path):
    """Forty dialogues in one tree, as a limit is set that they do not fit into."""
    model = load()
    pairs = long(model)
    settings = Settings(**FAST, batch_size=40, max_tree_tokens=10**6)
    with memory_up_to(50 * 2**20):
        line(
            lambda: train(model, pairs, settings, tmp_path, progress=False),
            *("step 0: out of memory; set max_tree_tokens = ", "GB"),
        )
    train(model, pairs.take(range(40)), settings, tmp_path, progress=False)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory(tmp_path, monkeypatch, error):
    """One line says what would fit, by the meta device; nothing is left in the network."""
    model = load()
    pairs = one_token(model)
    settings = Settings(**FAST)
    whole = pairs.take(batches(len(pairs), settings)[0])
    size = len(whole.trie().tokens)

    def fail(*_):
        raise error

    def message(there):
        monkeypatch.setattr(memory, "available", lambda _: there)
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "microbatches", fail)
            return line(
                lambda: train(model, pairs, settings, tmp_path, progress=False),
                *("step 0", "out of memory"),
            )

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "microbatches", fail)
        line(
            lambda: finetune.reference_log_ratios(model, pairs, settings),
            "step 0: out of memory; set max_tree_tokens",
        )
    finetune.reference_log_ratios(model, pairs, settings)  # from the cache from now on
    config = model.network.config
    lots = [whole.take(lot) for lot in whole.microbatches(size // 8)]
    largest = max(lots, key=lambda lot: len(lot.trie().tokens))
    smallest, less = (memory.estimate(config, largest, "float32", c).total for c in (False, True))
    assert less < smallest < memory.estimate(config, whole, "float32").total
    text = message(10**12)
    assert f"max_tree_tokens = {size // 2}, checkpointing = False" in text
    assert "checkpointing = True" in message(int(smallest / 0.9))
    assert "nothing fits" in message(1000) and "configs/" in message(1000)
    with monkeypatch.context() as patch:
        error = RuntimeError("else")
        patch.setattr(Engine, "microbatches", fail)
        with pytest.raises(RuntimeError, match="else"):
            train(model, pairs, settings, tmp_path, progress=False)
    train(model, pairs, settings, tmp_path, progress=False)


def test_advice_enters_no_key():
    """What a run's message would advise decides no number."""
    code = Code(PROJECT).reached([Unit("dpo_helpers.finetune.trainer", "train")])
    names = {unit.name for unit in code}
    assert {"Run.steps", "Engine.microbatches", "enough_memory", "group_means"} <= names
    assert not names & {"advice", "estimate", "available", "MemoryEstimate"}


def test_memory_on_the_meta_device_is_that_of_real_tensors():
    """What backward keeps, counted on real tensors."""
    from torch.autograd.graph import saved_tensors_hooks

    for name in TINY:
        model = load(name)
        for precision in ("float32", "autocast", "bfloat16"):
            for pairs in (one_token(model).take(range(8)), long(model).take(range(2))):
                kept = {}

                def keep(x, kept=kept):
                    kept[x.untyped_storage().data_ptr()] = x.untyped_storage()
                    return x

                own = list(model.network.parameters())
                with compute_precision(model.network, precision):
                    used = list(model.network.parameters())
                    with saved_tensors_hooks(keep, lambda x: x):
                        lm.log_ratios(model.network, pairs)
                for weight in (*own, *used):
                    kept.pop(weight.untyped_storage().data_ptr(), None)
                want = sum(storage.nbytes() for storage in kept.values())
                need = memory.estimate(model.network.config, pairs, precision)
                if precision == "autocast":  # its copies are made by torch, as they are needed
                    want -= need.copies
                assert need.activations == pytest.approx(want, rel=0.02)
                numbers = sum(p.numel() for p in model.network.parameters())
                assert (need.weights, need.optimizer) == (4 * numbers, 8 * numbers)


def test_available(monkeypatch):
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory.available("cpu") == machine
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10**9, 10**9))
    assert memory.available("cpu") == 10**9


@pytest.mark.slow
def test_accelerate_of_another_precision(tmp_path, monkeypatch):
    """In a process of its own: accelerate keeps its state for good."""
    done = subprocess.run(
        command(tmp_path, "--epochs", "1"),
        env=environment(tmp_path) | {"ACCELERATE_MIXED_PRECISION": "bf16"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: setting precision = 'float32'")


def test_the_command_line(tmp_path, capsys):
    words = "--model tiny-llama --device cpu --precision float32"
    for number, what in enumerate(("--behavior keeps-promises", "--pairs harmless-base")):
        out = tmp_path / str(number)
        main([str(out), *words.split(), *what.split()])
        assert f"steps: {out}" in capsys.readouterr().out
        assert len(losses(out)) == (3, 2)[number]
    line(lambda: main([str(tmp_path / "2"), *words.split()]), "--behavior", "--pairs")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled(tmp_path, cache):
    """The same run by torch.compile."""
    made = tmp_path / "code"
    for name, more in (("plain", ()), ("compiled", ("--compile",))):
        words = command(tmp_path / name, "--epochs", "2", *more)
        where = {"TORCHINDUCTOR_CACHE_DIR": str(made)}
        subprocess.run(words, env=environment(cache) | where, check=True)
        assert any(made.rglob("*.so")) == (name == "compiled")
    one, other = losses(tmp_path / "plain"), losses(tmp_path / "compiled")
    assert len(one) == 6
    np.testing.assert_allclose(other, one, rtol=1e-4)


def test_progress(tmp_path, capsys):
    model = load()
    train(model, one_token(model), Settings(**FAST), tmp_path)
    shown = capsys.readouterr().err
    assert "4/4" in shown and "loss=" in shown and "accuracy=" in shown and "step" in shown
