"""The configuration cell: every parameter is checked, and ``None`` means what the tier says."""

import math
from dataclasses import asdict, fields

import numpy as np
import pytest

from dpo_helpers.errors import InputError
from ledger.config import TIERS, Config, configure, is_default
from ledger.store import ROOT, RunStore


def line(parameters: dict, *parts: str) -> str:
    """The one line that ``configure`` fails with; every one of ``parts`` is in it."""
    with pytest.raises(InputError) as caught:
        configure(parameters)
    text = str(caught.value)
    assert text and "\n" not in text and len(text) < 1000
    for part in parts:
        assert part in text
    return text


@pytest.mark.parametrize("tier", TIERS)
def test_none_means_what_the_tier_says(tier):
    own = configure({"tier": tier})
    assert asdict(own) == {"tier": tier} | TIERS[tier]
    silent = {field.name: None for field in fields(Config)} | {"tier": tier}
    assert configure(silent) == own and is_default(own)


def test_the_tier_is_book_unless_said():
    assert configure({}).tier == "book"


VARIED = {
    "model": "tiny-llama",
    "data": "/somewhere",
    "behaviors": ("loves-gardening",),
    "calibration": "loves-gardening",
    "beta": 0.5,
    "learning_rate": 3.0,
    "steps": 7,
    "batch_size": 5,
    "sampling": "balanced",
    "seeds": 2,
    "full_learning_rate": 2e-4,
    "full_batch_size": 8,
    "full_seeds": (1,),
    "dtype": "bfloat16",
    "newline": False,
    "device": "cpu",
}


def test_every_parameter_can_be_varied():
    assert {"tier", *VARIED} == {field.name for field in fields(Config)}


@pytest.mark.parametrize("name", VARIED)
def test_one_parameter_changes_nothing_else(name):
    config = configure({"tier": "smoke", name: VARIED[name]})
    assert asdict(config) == {"tier": "smoke"} | TIERS["smoke"] | {name: VARIED[name]}
    assert is_default(config) == (name == "device"), "a device is where, not what"


def test_what_is_varied_is_recorded_apart():
    """Play overwrites neither the book's records nor the tier's own."""
    book, smoke = RunStore(configure({})), RunStore(configure({"tier": "smoke"}))
    assert book.root == ROOT / "results"
    roots = [RunStore(configure({"tier": t, "steps": 7})).root for t in ("book", "smoke")]
    roots += [RunStore(configure({"beta": 0.5})).root, smoke.root]
    assert len(set(roots)) == 4 and book.root not in roots
    assert RunStore(configure({"device": "cpu"})).root == book.root


def test_the_values_of_the_tier_spelt_out_are_its_own():
    spelt_out = TIERS["smoke"] | {"behaviors": list(TIERS["smoke"]["behaviors"])}
    config = configure({"tier": "smoke"} | spelt_out)
    assert config == configure({"tier": "smoke"}) and is_default(config)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("lerning_rate", "learning_rate"),
        ("behaviours", "behaviors"),
        ("batchsize", "batch_size"),
        ("Seeds", "seeds"),
        ("teir", "tier"),
    ],
)
def test_a_misspelt_parameter_suggests_the_right_one(wrong, right):
    line({"tier": "smoke", wrong: 1}, f"unknown parameter '{wrong}'", "did you mean", right)


def test_an_unknown_parameter():
    line({"tier": "smoke", "xyzzy": 1}, "unknown parameter 'xyzzy'", "known:")
    line({"xyzzy": None}, "unknown parameter 'xyzzy'")


def test_what_is_no_parameter_passes():
    """A notebook's globals hold more: modules, functions, classes, and IPython's own."""
    others = {"np": np, "line": line, "Config": Config, "_": 3, "_i1": "x", "__name__": "__main__"}
    others |= {"In": ["x"], "Out": {1: 2}, "exit": object(), "quit": object()}
    assert configure({"tier": "smoke"} | others) == configure({"tier": "smoke"})


@pytest.mark.parametrize(
    ("name", "value", "given", "expected"),
    [
        ("steps", True, "bool", "int"),
        ("seeds", False, "bool", "int"),
        ("beta", True, "bool", "float"),
        ("learning_rate", True, "bool", "float or str"),
        ("steps", 10.0, "float", "int"),
        ("steps", "10", "str", "int"),
        ("batch_size", [32], "list", "int"),
        ("beta", "0.01", "str", "float"),
        ("beta", [0.01], "list", "float"),
        ("learning_rate", {"rate": 1}, "dict", "float or str"),
        ("newline", 1, "int", "bool"),
        ("newline", "no", "str", "bool"),
        ("model", 7, "int", "str"),
        ("data", ["sample"], "list", "str"),
        ("device", 0, "int", "str"),
        ("sampling", False, "bool", "str"),
        ("calibration", ("a",), "tuple", "str"),
        ("full_learning_rate", [1e-5], "list", "float or str"),
        ("full_seeds", 3, "int", "list"),
        ("full_seeds", "0", "str", "list"),
        ("behaviors", "loves-gardening", "str", "list"),
        ("behaviors", 3, "int", "list"),
        ("behaviors", {"loves-gardening": 1}, "dict", "list"),
        # Not plain values: they must not be passed over, as if the tier's value were meant.
        ("behaviors", {"loves-gardening"}, "set", "list"),
        ("behaviors", np.array(["loves-gardening"]), "ndarray", "list"),
        ("learning_rate", 1j, "complex", "float or str"),
        ("model", ROOT, "Path", "str"),
    ],
)
def test_an_ill_typed_parameter(name, value, given, expected):
    parameters = {"tier": "smoke", name: value}
    text = line(parameters, f"parameter {name} = ", given, "expected")
    assert expected in text.split("expected")[1]
    assert "_configured" not in parameters


@pytest.mark.parametrize("value", [["a", 1], [None], [["a"]], [True, "a"]])
def test_a_list_of_something_else(value):
    """Told which it is; "is of type list, expected a list" would not help."""
    text = line({"tier": "smoke", "behaviors": value}, "behaviors", "names")
    assert "type list; expected a list" not in text


def test_numbers_of_numpy_are_numbers():
    """They are used, or refused, but never passed over."""
    config = configure({"tier": "smoke", "beta": np.float64(0.5)})
    assert config.beta == 0.5
    parameters = {"tier": "smoke", "steps": np.int64(7)}
    try:
        assert configure(parameters).steps == 7
    except InputError as refused:
        assert "steps" in str(refused)


@pytest.mark.parametrize("name", ["beta", "learning_rate", "full_learning_rate"])
def test_an_int_is_a_float(name):
    value = getattr(configure({"tier": "smoke", name: 2}), name)
    assert value == 2 and type(value) is float


@pytest.mark.parametrize("name", ["beta", "learning_rate", "full_learning_rate"])
@pytest.mark.parametrize(
    "value", [0, -1, 0.0, -0.01, math.nan, math.inf, -math.inf, 10**400], ids=lambda v: str(v)[:8]
)
def test_a_number_out_of_range(name, value):
    line({"tier": "smoke", name: value}, f"parameter {name}", "positive number")


@pytest.mark.parametrize("name", ["steps", "batch_size", "seeds", "full_batch_size"])
@pytest.mark.parametrize("value", [0, -1, -100])
def test_a_count_out_of_range(name, value):
    line({"tier": "smoke", name: value}, f"parameter {name} = {value}", "at least 1")
    assert getattr(configure({"tier": "smoke", name: 1}), name) == 1


@pytest.mark.parametrize("size", [1, 33])
def test_balanced_minibatches_are_even(size):
    line({"tier": "smoke", "sampling": "balanced", "batch_size": size}, f"batch_size = {size}")
    assert configure({"tier": "smoke", "batch_size": size}).batch_size == size


def test_no_behaviors():
    for none in ([], ()):
        line({"tier": "smoke", "behaviors": none}, "parameter behaviors", "at least one")


@pytest.mark.parametrize("rate", ["rule", 30.0])
def test_a_learning_rate(rate):
    assert configure({"tier": "smoke", "learning_rate": rate}).learning_rate == rate


@pytest.mark.parametrize("name", ["learning_rate", "full_learning_rate"])
@pytest.mark.parametrize("rate", ["rules", "", "0.1"])
def test_a_learning_rate_in_words(name, rate):
    line({"tier": "smoke", name: rate}, f"parameter {name} = {rate!r}", '"rule"')


@pytest.mark.parametrize("seeds", [[], [-1], [0, 0]])
def test_seeds_of_full_fine_tuning(seeds):
    line({"tier": "smoke", "full_seeds": seeds}, f"full_seeds = {seeds}", "at least one seed")
    assert configure({"tier": "smoke", "full_seeds": [3, 1]}).full_seeds == (3, 1)


@pytest.mark.parametrize("seeds", [["0"], [0.5], [True], [None]])
def test_seeds_that_are_no_numbers(seeds):
    line({"tier": "smoke", "full_seeds": seeds}, "full_seeds", "each an int")


@pytest.mark.parametrize(
    ("tier", "near"), [("smok", "smoke"), ("Book", "book"), ("papers", "paper"), ("xyz", "known:")]
)
def test_an_unknown_tier(tier, near):
    line({"tier": tier}, f"unknown tier '{tier}'", near)


@pytest.mark.parametrize("tier", [3, True, None, ["smokey"], ""])
def test_an_ill_typed_tier(tier):
    line({"tier": tier}, "tier", str(tier), "smoke")


@pytest.mark.parametrize(
    ("sampling", "near"), [("balance", "balanced"), ("Uniform", "uniform"), ("", "known:")]
)
def test_an_unknown_sampling(sampling, near):
    line({"tier": "smoke", "sampling": sampling}, f"unknown sampling '{sampling}'", near)


@pytest.mark.parametrize("dtype", ["float", "int8", "float16", "", "bloat16"])
def test_an_unknown_dtype(dtype):
    line({"tier": "smoke", "dtype": dtype}, f"unknown dtype '{dtype}'", "bfloat16")


@pytest.mark.parametrize("device", ["gpu", "", "CUDA", "auto:1", "cpu:x", "cuda:"])
def test_an_unknown_device(device):
    line({"tier": "smoke", "device": device}, "device", repr(device))


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1", "mps"])
def test_a_device(device):
    assert configure({"tier": "smoke", "device": device}).device == device


def test_a_cell_run_again_passes_over_what_the_notebook_made_since():
    notebook = {"tier": "smoke", "steps": None}
    first = configure(notebook)
    notebook |= {"draw": 3, "losses": [1.0], "name": "x", "lerning_rate": 0.1}
    assert configure(notebook) == first
    notebook["steps"] = 7
    assert configure(notebook).steps == 7
    notebook["steps"] = "7"
    line(notebook, "steps")
    notebook |= {"steps": 0}
    line(notebook, "steps")
    notebook |= {"steps": None, "tier": "smokey"}
    line(notebook, "unknown tier")


def test_a_first_run_that_failed_does_not_excuse_the_next():
    notebook = {"tier": "smoke", "lerning_rate": 0.1}
    line(notebook, "lerning_rate")
    line(notebook, "lerning_rate")
    del notebook["lerning_rate"]
    assert configure(notebook) == configure({"tier": "smoke"})


def test_the_parameters_of_every_notebook_are_known():
    """Each parameters cell, run as it stands, is the book tier's own configuration."""
    sources = sorted((ROOT / "notebooks").glob("*.py"))
    assert sources
    for source in sources:
        cell = source.read_text("utf-8").split('# %% tags=["parameters"]')[1].split("# %%")[0]
        values: dict = {}
        exec(cell, values)
        assert is_default(configure(values)), source.name
