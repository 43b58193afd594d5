"""The configuration: what a notebook's parameters, a sweep's grid and a record spell out."""

import contextlib
import math
import re
import types
import typing
from collections.abc import MutableMapping
from dataclasses import asdict, dataclass

from dpo_helpers.errors import InputError, unknown

# The five behaviors of Figures 3, 4 and 6, in the paper's order: 1 (least
# distinguishable) to 5 (most).
FIVE = (
    "subscribes-to-average-utilitarianism",
    "okay-with-building-an-AI-with-different-goals-to-accomplish-its-task",
    "optionality-increasing",
    "desire-to-not-have-memory-erased",
    "subscribes-to-Buddhism",
)


@dataclass(frozen=True)
class Config:
    """Everything that decides a run. ``None`` in a notebook means: as the tier says.

    tier           smoke (sample data, small), book (recorded), paper (7B models)
    model          a name of ``lm.CARDS``, a local folder, or a hub id
    data           "sample", "anthropic" ($DPO_DATA_DIR, else the hub), or a folder
    behaviors      names of Persona behaviors
    calibration    the behavior, outside ``behaviors``, that the learning-rate rule looks at
    beta           β of eq. (4)
    learning_rate  η; "rule" means the chapter's stated rule
    steps          gradient steps
    batch_size     statements drawn anew at each step
    sampling       "uniform" or "balanced" minibatches, or "full" (gradient descent)
    seeds          number of seeds of the last layer alone, 0 … seeds − 1
    full_learning_rate, full_batch_size, full_seeds
                   of full fine-tuning: AdamW's η, or "rule" for the paper's and that scaled to the
                   model; pairs a step; the seeds themselves
    dtype          of the model: "float32", or "bfloat16"
    newline        whether the prompt ends in a newline (the authors' training script: yes)
    device         "auto", "cpu", "cuda" or "mps"
    """

    tier: str
    model: str
    data: str
    behaviors: tuple[str, ...]
    calibration: str
    beta: float
    learning_rate: float | str
    steps: int
    batch_size: int
    sampling: str
    seeds: int
    full_learning_rate: float | str
    full_batch_size: int
    full_seeds: tuple[int, ...]
    dtype: str
    newline: bool
    device: str

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "seeds", "full_batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"parameter {name} = {getattr(self, name)}: must be at least 1")
        for name in ("beta", "learning_rate", "full_learning_rate"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (math.isfinite(value) and value > 0):
                raise InputError(f"parameter {name} = {value}: must be a positive number")
            if isinstance(value, str) and value != "rule":
                raise InputError(f'parameter {name} = {value!r}: must be a number or "rule"')
        seeds = self.full_seeds
        if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
            raise InputError(
                f"parameter full_seeds = {list(seeds)}: name at least one seed ≥ 0, each once"
            )
        if not self.behaviors:
            raise InputError("parameter behaviors = (): name at least one behavior")
        if self.dtype not in ("float32", "bfloat16"):
            raise unknown("dtype", self.dtype, ("float32", "bfloat16"))
        if not re.fullmatch(r"auto|cpu|(cuda|mps)(:\d+)?", self.device):
            raise unknown("device", self.device, ("auto", "cpu", "cuda", "mps"))
        if self.sampling == "balanced" and self.batch_size % 2:
            raise InputError(
                f"parameter batch_size = {self.batch_size}: must be even for balanced minibatches"
            )
        if self.sampling not in ("uniform", "balanced", "full"):
            raise unknown("sampling", self.sampling, ("uniform", "balanced", "full"))


_COMMON = dict(
    beta=0.01,
    learning_rate="rule",
    steps=100,
    batch_size=128,
    sampling="uniform",
    dtype="float32",
    newline=True,
    device="auto",
    full_learning_rate="rule",
    full_batch_size=32,
    full_seeds=(0, 1, 2),
)
_PERSONA = dict(data="anthropic", behaviors=FIVE, calibration="agreeableness")
TIERS: dict[str, dict[str, object]] = {
    "smoke": _COMMON
    | dict(
        model="smollm2-135m",
        data="sample",
        behaviors=(
            "judges-by-the-worst-off",
            "takes-the-later-reward",
            "prefers-city-life",
            "lives-by-stoicism",
            "loves-gardening",
        ),
        calibration="keeps-promises",
        batch_size=32,
        seeds=5,
        full_learning_rate=1e-4,
        full_seeds=(0,),
    ),
    "book": _COMMON | _PERSONA | dict(model="smollm2-135m", seeds=20),
    "paper": _COMMON
    | _PERSONA
    | dict(model="llama-2-7b", learning_rate=0.1, seeds=1, dtype="bfloat16"),
}


def configure(parameters: MutableMapping[str, object]) -> Config:
    """The configuration of a notebook, from its parameters (pass ``globals()``).

    At the first call every public name that is a plain value must be a field of
    ``Config``: so a misspelt ``papermill -p`` stops the run here. Later calls
    (a cell run again by hand) pass over the names that the notebook made since.

    Raises InputError naming an unknown, misspelt or ill-typed parameter.
    """
    hints = typing.get_type_hints(Config)
    plain = str | int | float | list | tuple | dict | types.NoneType
    values = {
        name: value
        for name, value in parameters.items()
        if not name.startswith("_")
        and name not in ("In", "Out")
        and (name in hints or isinstance(value, plain))
    }
    tier = values.get("tier", "book")
    if not isinstance(tier, str) or tier not in TIERS:
        raise unknown("tier", str(tier), TIERS)
    for name in values:
        if name not in hints and "_configured" not in parameters:
            raise unknown("parameter", name, hints)
    merged = {"tier": tier} | TIERS[tier]
    for name, value in values.items():
        if name in hints and value is not None:
            merged[name] = _typed(name, value, hints[name])
    config = Config(**merged)
    parameters["_configured"] = True
    return config


def _typed(name: str, value: object, hint: object) -> object:
    if typing.get_origin(hint) is tuple:
        kind = typing.get_args(hint)[0]
        if isinstance(value, list | tuple) and all(type(v) is kind for v in value):
            return tuple(value)
        expected = "a list of " + {str: "names (each a str)", int: "numbers (each an int)"}[kind]
    else:
        options = typing.get_args(hint) or (hint,)
        is_bool = isinstance(value, bool)
        if float in options and isinstance(value, int) and not is_bool:
            with contextlib.suppress(OverflowError):
                return float(value)
            return math.inf
        if isinstance(value, options) and is_bool == (bool in options):
            return value
        expected = " or ".join(option.__name__ for option in options)
    if isinstance(value, list | tuple):
        given = f"of {' and '.join(sorted({type(v).__name__ for v in value}))}"
    else:
        given = ""
    raise InputError(
        f"parameter {name} = {value!r} is of type {type(value).__name__} {given}".rstrip()
        + f"; expected {expected}"
    )


def is_default(config: Config) -> bool:
    """Whether ``config`` is its tier's own, nothing varied by the reader (device apart)."""
    own = Config(**({"tier": config.tier} | TIERS[config.tier]))
    return asdict(config) | {"device": ""} == asdict(own) | {"device": ""}
