"""The page on hardware is what its command writes, and its numbers are those of the step."""

import pytest
from transformers import AutoConfig

from dpo_helpers import data, lm
from ledger.config import FIVE
from workflow import hardware


@pytest.mark.slow
def test_the_page_is_what_the_command_writes(root, monkeypatch):
    """Also where no step was measured yet."""
    page = hardware.page()
    assert (root / "book" / "hardware.md").read_text("utf-8") == page
    for name in lm.CARDS:
        assert page.count(f"| `{name}` |") == (0 if name.startswith("tiny") else 4)


def test_architectures():
    """The parameters that the cards tell of; with what is here, of the network itself."""
    for name, fields in hardware.ARCHITECTURES.items():
        config = AutoConfig.for_model(**fields)
        layer, root = hardware.parameters(config)
        total = layer * config.num_hidden_layers + root
        number, unit = lm.CARDS[name].parameters.split()
        assert total / {"M": 1e6, "B": 1e9}[unit] == pytest.approx(float(number), rel=0.01)
        assert config.hidden_size == lm.CARDS[name].d


def test_sharding_divides():
    """Two GPUs need about half each, eight about an eighth, of a model that is all weights."""
    config = AutoConfig.for_model(**hardware.ARCHITECTURES["llama-2-7b"])
    one, two, eight = (
        hardware.gigabytes(config, hardware.statements(32 // gpus), gpus, True)
        for gpus in hardware.GPUS
    )
    assert 16 * 6.74 < one < 20 * 6.74
    assert one / 2.5 < two < one / 1.9
    assert one / 10 < eight < one / 7


@pytest.mark.skipif(not data.at_hand("anthropic"), reason="Anthropic's statements are not here")
def test_statements_are_about_as_long_as_anthropics():
    model = lm.load("smollm2-135m", "cpu")
    trees = [
        lm.pairs_from_behaviors(model, [data.load_behavior(name, "anthropic")])
        .take(range(32))
        .trie()
        for name in FIVE
    ]
    mean = sum(len(tree.tokens) for tree in trees) / len(trees)
    assert len(hardware.statements(32).trie().tokens) == pytest.approx(mean, rel=0.1)
