"""Hidden states from token tries against the network's own forward pass, prompt by prompt."""

import numpy as np
import pytest
import torch

from dpo_helpers import lm
from dpo_helpers.data import load_behavior
from dpo_helpers.errors import InputError
from dpo_helpers.states import build_trie, forward, geometry, hidden_states, pack

TINY = ("tiny-llama", "tiny-mistral", "tiny-gemma")
WINDOW = 16


pytestmark = pytest.mark.usefixtures("one_thread")


def _load(name):
    """A tiny model whose attention has a sharp focus, so that a wrong mask or position shows."""
    model = lm.load(name, "cpu")
    with torch.no_grad():
        for parameter, weight in model.network.named_parameters():
            if "self_attn" in parameter and weight.ndim == 2:
                weight *= 12
    return model


def _prompts():
    """Lengths shorter and longer than the window; duplicates; prefixes of one another."""
    questions = load_behavior("loves-gardening").prompts()[:9]
    long = " ".join(questions[:3])
    start = "Is the following"
    return [
        *questions,
        "No",
        start,
        questions[4],
        start + " statement",
        long,
        questions[4],
        long[:-1],
        "A garden? No.",
        long + "Yes",
    ]


def _one_by_one(model, prompts):
    with torch.inference_mode():
        return np.stack(
            [
                model.network.base_model(torch.tensor([ids]), use_cache=False)
                .last_hidden_state[0, -1]
                .numpy()
                for ids in model.tokenizer(prompts).input_ids
            ]
        )


def test_prompts_are_as_hard_as_they_should_be():
    ids = lm.load("tiny-mistral", "cpu").tokenizer(_prompts()).input_ids
    assert min(map(len, ids)) < WINDOW < np.median([len(x) for x in ids])
    assert len(ids[13]) > 64 + WINDOW, "one is longer than a block and the window"
    assert ids[4] == ids[11] == ids[14]
    for short, longer in ((10, 12), (12, 0), (13, 17)):
        assert len(ids[short]) < len(ids[longer])
        assert ids[longer][: len(ids[short])] == ids[short]


@pytest.mark.parametrize("tokens", [2048, 150, 1])
@pytest.mark.parametrize("name", TINY)
def test_equals_plain_forward(name, tokens):
    """In one trie, in several, and with a trie for each prompt."""
    model, prompts = _load(name), _prompts()
    states = hidden_states(model, prompts, tokens)
    want = _one_by_one(model, prompts)
    assert states.shape == (len(prompts), 32)
    assert states.dtype == np.float32
    np.testing.assert_allclose(states, want, rtol=0, atol=1e-4)
    np.testing.assert_allclose(states[[11, 14]], states[[4, 4]], rtol=0, atol=1e-5)
    apart = np.linalg.norm(want[:, None] - want, axis=-1)
    assert np.median(apart) > 1, "different prompts have different states"


@pytest.mark.parametrize("name", TINY)
def test_every_token_of_the_trie(name):
    """Not the last alone: the state at each row is that of the prefix which ends there."""
    model = _load(name)
    ids = model.tokenizer(_prompts()).input_ids
    trie = build_trie(ids)
    with torch.inference_mode():
        states = forward(model.network, trie)
        assert states.shape == (len(trie.tokens), 32)
        for sequence, row in zip(ids, trie.ends.tolist(), strict=True):
            rows = []
            while row >= 0:
                rows.append(row)
                row = int(trie.parents[row])
            plain = model.network.base_model(torch.tensor([sequence])).last_hidden_state[0]
            torch.testing.assert_close(states[rows[::-1]], plain, rtol=0, atol=1e-4)


def test_the_window_is_narrower_than_the_prompts():
    """Mistral's second layer reaches 2·15 tokens back: what lies further back leaves no trace."""
    model = _load("tiny-mistral")
    text = _prompts()[13]
    ids = model.tokenizer([text]).input_ids[0]
    changed = [7, *ids[1:]]
    states = [forward(model.network, build_trie([x])).detach() for x in (ids, changed)]
    apart = (states[0] - states[1]).norm(dim=1)
    reach = 2 * (WINDOW - 1)
    assert (apart[: reach - 5] > 1e-6).sum() > 15
    assert (apart[reach + 1 :] == 0).all()


def test_in_double_precision():
    """Exact, but for rounding."""
    model = _load("tiny-gemma")
    model.network.double()
    ids = model.tokenizer(_prompts()).input_ids
    trie = build_trie(ids)
    with torch.inference_mode():
        states = forward(model.network, trie)[trie.ends]
        for sequence, state in zip(ids, states, strict=True):
            plain = model.network.base_model(torch.tensor([sequence])).last_hidden_state[0, -1]
            torch.testing.assert_close(state, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", TINY)
def test_the_network_is_left_as_it_was(name, implementation):
    model, prompts = _load(name), _prompts()
    model.network.set_attn_implementation(implementation)
    before = _one_by_one(model, prompts)
    weights = {key: value.clone() for key, value in model.network.state_dict().items()}
    hidden_states(model, prompts)
    assert model.network.config._attn_implementation == implementation
    assert model.network.base_model.config._attn_implementation == implementation
    assert (_one_by_one(model, prompts) == before).all()
    assert all((model.network.state_dict()[key] == value).all() for key, value in weights.items())


def test_the_network_is_left_as_it_was_after_an_error():
    model = _load("tiny-llama")
    with pytest.raises(IndexError):
        forward(model.network, build_trie([[0, 10**6]]))
    assert model.network.config._attn_implementation == "sdpa"


def test_prompts_longer_than_the_context():
    model = _load("tiny-llama")
    word = " garden"
    limit = model.network.config.max_position_embeddings
    prompts = ["Yes", word * 2 * limit]
    with pytest.raises(InputError, match=f"statement 2 has .* {limit}"):
        hidden_states(model, prompts)


@pytest.mark.parametrize("name", TINY)
def test_gradients(name):
    """Through a trie, parameters get the gradients that they get prompt by prompt."""
    model = _load(name)
    ids = model.tokenizer(_prompts()).input_ids
    body = model.network.base_model
    weights = torch.randn(len(ids), 32, generator=torch.Generator().manual_seed(0))

    def gradients(states):
        model.network.zero_grad()
        (weights * states).sum().backward()
        return {key: value.grad.clone() for key, value in body.named_parameters()}

    plain = gradients(torch.stack([body(torch.tensor([x])).last_hidden_state[0, -1] for x in ids]))
    one = build_trie(ids)
    several = [torch.empty(0)] * len(ids)
    for members, trie in pack(ids, 150):
        for i, state in zip(members, forward(model.network, trie)[trie.ends], strict=True):
            several[i] = state
    for states in (forward(model.network, one)[one.ends], torch.stack(several)):
        found = gradients(states)
        assert found.keys() == plain.keys()
        for key, want in plain.items():
            assert want.norm() > 0, key
            assert (found[key] - want).norm() <= 1e-4 * want.norm(), key


# The book's own model


@pytest.fixture(scope="module")
def smollm2():
    return lm.load("smollm2-135m", "cpu")


@pytest.mark.slow
def test_smollm2_equals_plain_forward(smollm2):
    prompts = load_behavior("keeps-promises").prompts()[:12]
    states, want = hidden_states(smollm2, prompts), _one_by_one(smollm2, prompts)
    apart = np.linalg.norm(states - want, axis=1)
    assert (apart < 1e-5 * np.linalg.norm(want, axis=1)).all()


@pytest.mark.slow
def test_bfloat16_is_as_near_as_the_plain_forward(smollm2):
    """What half precision costs, measured from float32: no more in tries than prompt by prompt."""
    prompts = load_behavior("keeps-promises").prompts()[:40]
    exact, half = _one_by_one(smollm2, prompts), lm.load("smollm2-135m", "cpu", "bfloat16")
    with torch.inference_mode():
        plain = [
            half.network.base_model(torch.tensor([ids])).last_hidden_state[0, -1].float().numpy()
            for ids in half.tokenizer(prompts).input_ids
        ]
    off, want = (
        np.linalg.norm(states - exact, axis=1) / np.linalg.norm(exact, axis=1)
        for states in (hidden_states(half, prompts), np.stack(plain))
    )
    assert 0 < off.mean() < 1.1 * want.mean() < 0.03


@pytest.mark.slow
def test_half_precision_storage_changes_little(smollm2):
    behavior = load_behavior("judges-by-the-worst-off")
    states = hidden_states(smollm2, behavior.prompts())
    exact = geometry(states, behavior.labels).distinguishability
    kept = geometry(states.astype(np.float16), behavior.labels).distinguishability
    assert exact > 0.1
    assert kept == pytest.approx(exact, rel=1e-3)
