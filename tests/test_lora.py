"""LoRA: what is trained, against W + (α/r) B A by hand and TRL's trainer with peft."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import training
from training import same, stopped, trl_trainer

from dpo_helpers import data, lm
from dpo_helpers.errors import InputError
from dpo_helpers.finetune import Settings, batches, reference_log_ratios, train
from dpo_helpers.lm import lora

pytestmark = pytest.mark.usefixtures("one_thread", "cache")

FAST = dict(precision="float32", learning_rate=1e-2, beta=0.1, batch_size=5)


load = partial(training.load, embeddings=1)


def pairs_of(model, n=20):
    return lm.pairs_from_text(model, list(data.load_pairs())[:n])


def adapters(model):
    return {n: p for n, p in model.network.named_parameters() if p.requires_grad}


def drawn(model):
    """The same with a B that is not 0."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(7)
        for name, weight in adapters(model).items():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    return model


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-mistral", "tiny-gemma"])
def test_new_adapters_leave_the_model_as_it_was(name):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    model, plain = lora.add(load(name), 3), load(name)
    assert (torch.get_rng_state() == state).all(), "the caller's random numbers are left alone"
    trained = adapters(model)
    layers = plain.network.config.num_hidden_layers
    assert len(trained) == 4 * layers, "A and B of two matrices a layer"
    for weight, x in trained.items():
        assert weight.split(".")[-4] in ("q_proj", "v_proj") and "lora_" in weight
        assert x.shape["lora_B" in weight] == lora.RANK
        assert x.any() == ("lora_A" in weight), "B is 0"
    same, other = adapters(lora.add(load(name), 3)), adapters(lora.add(load(name), 4))
    assert all(torch.equal(same[weight], x) for weight, x in trained.items())
    assert not any(torch.equal(other[w], x) for w, x in trained.items() if "lora_A" in w)
    pairs = pairs_of(plain, 6)
    with torch.no_grad():
        gaps = [lm.log_ratios(m.network, pairs) for m in (model, plain)]
    assert torch.equal(*gaps)


def test_an_adapter_is_a_change_of_low_rank():
    """W + (α/r) B A put into a plain network by hand; merging makes just that of it."""
    model, plain = drawn(lora.add(load(), 0)), load()
    before = pairs_of(plain, 6)
    found = adapters(model)
    with torch.no_grad():
        untouched = lm.log_ratios(plain.network, before)
        for name, weight in plain.network.named_parameters():
            of = [f"{name.removesuffix('.weight')}.lora_{x}.default.weight" for x in "AB"]
            if of[0] in found:
                a, b = (found[x] for x in of)
                weight += lora.ALPHA / lora.RANK * b @ a
        want = lm.log_ratios(plain.network, before)
        assert (want - untouched).abs().max() > 1e-2
        assert torch.allclose(lm.log_ratios(model.network, before), want, atol=2e-3)
        lora.merge(model)
        assert torch.allclose(lm.log_ratios(model.network, before), want, atol=2e-3)
    names = [n for n, p in model.network.named_parameters() if p.requires_grad]
    assert names == [n for n, _ in plain.network.named_parameters()], "a plain network again"
    assert len(adapters(lora.add(model, 1))) == len(found), "which takes adapters as before"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_is_for_training_only_and_only_adapters_are_trained(tmp_path, checkpointing):
    """Off in the reference and in what is measured; all else stays, bit for bit."""
    settings = Settings(**FAST, checkpointing=checkpointing)
    model = lora.add(load(), 0)
    pairs = pairs_of(model)
    frozen = {n: p.clone() for n, p in model.network.named_parameters() if not p.requires_grad}
    began = {name: p.detach().clone() for name, p in adapters(model).items()}
    assert np.allclose(
        reference_log_ratios(model, pairs, settings), reference_log_ratios(load(), pairs, settings)
    )
    curves = train(drawn(model), pairs, settings, tmp_path / "run", pairs, progress=False)
    assert curves.loss[0, 1, 0] == pytest.approx(np.log(2), abs=1e-6), "no dropout here"
    assert curves.loss[0, 0, 0] != pytest.approx(np.log(2), abs=1e-6), "but here"
    now = dict(model.network.named_parameters())
    assert all(torch.equal(now[name], p) for name, p in frozen.items())
    assert not any(torch.equal(now[name], p) for name, p in began.items())
    dry = drawn(lora.add(load(), 0, dropout=0.0))
    without = train(dry, pairs, settings, tmp_path / "without", progress=False)
    assert without.loss[0, 0, 0] == pytest.approx(np.log(2), abs=1e-6)


@pytest.mark.parametrize("precision", ["autocast", "bfloat16"])
def test_low_precision_is_near_float32(tmp_path, precision):
    pairs = pairs_of(load())
    found = []
    for kind in (precision, "float32"):
        model = drawn(lora.add(load(), 0, dropout=0.0))
        settings = Settings(**FAST | {"precision": kind})
        found.append(train(model, pairs, settings, tmp_path / kind, pairs, progress=False))
    low, full = (curves.loss[0, 1] for curves in found)
    assert np.isfinite(low).all() and full[0] - full[-1] > 0.01
    assert low == pytest.approx(full, rel=0.03)
    for weight in adapters(model).values():
        assert weight.dtype == torch.float32


def test_a_resumed_run_is_bitwise_an_uninterrupted_one(tmp_path):
    """With dropout: the state of the random numbers goes with the adapters."""
    settings = Settings(**FAST, save_every=2)
    pairs = pairs_of(load())
    whole, again = lora.add(load(), 0), lora.add(load(), 0)
    want = train(whole, pairs, settings, tmp_path / "whole", pairs, progress=False)
    with stopped(3):
        train(lora.add(load(), 0), pairs, settings, tmp_path / "run", pairs, progress=False)
    torch.manual_seed(99)
    found = train(again, pairs, settings, tmp_path / "run", pairs, progress=False)
    assert same(found, want)
    for name, weight in adapters(whole).items():
        assert torch.equal(weight, adapters(again)[name])


def test_equals_trl_with_peft(tmp_path):
    """Losses of the first three steps, relative 1e-4, dropout 0."""
    pytest.importorskip("trl")
    from peft import LoraConfig

    settings = Settings(**FAST | {"beta": 1.0})
    model = lora.add(load(), 0, dropout=0.0)
    pairs = pairs_of(model)
    rows = pairs.take(np.concatenate(batches(len(pairs), settings)[:3]))
    adapter = LoraConfig(
        r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    trainer, losses = trl_trainer(load(), rows, settings, 3, peft_config=adapter)
    with torch.no_grad():  # the same A
        theirs = dict(trainer.model.named_parameters())
        for name, weight in adapters(model).items():
            theirs[f"base_model.model.{name}"].copy_(weight)
    trainer.train()
    curves = train(model, pairs, settings, tmp_path / "run", progress=False)
    assert losses[0] == pytest.approx(np.log(2)) and max(losses) - min(losses) > 1e-3
    np.testing.assert_allclose(curves.loss[0, 0, :3], losses, rtol=1e-4)


def test_a_network_without_such_matrices_is_refused():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model = replace(load(), name="other", network=network)
    with pytest.raises(
        InputError, match=r"model other: no adapter can be added.*q_proj and v_proj"
    ):
        lora.add(model, 0)
