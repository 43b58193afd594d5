"""Full fine-tuning from the command line.

python -m dpo_helpers.finetune --help
accelerate launch --config_file configs/llama-2-7b.yaml -m dpo_helpers.finetune …
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState

from .. import data, lm
from ..errors import InputError
from .settings import Settings
from .trainer import train


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the command line says; under ``accelerate launch``, in all its processes."""
    parser = argparse.ArgumentParser("python -m dpo_helpers.finetune", description=main.__doc__)
    parser.add_argument("out", type=Path, help="folder of the run; a stopped run resumes there")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", default="sample")
    parser.add_argument("--behavior", action="append", help="of Persona; several make a mixture")
    parser.add_argument("--pairs", help="a subset of HH-RLHF instead, such as harmless-base")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    fields = dataclasses.fields(Settings)
    for field in fields:
        switch = dict(action=argparse.BooleanOptionalAction)
        kind = switch if field.type is bool else dict(type=field.type)
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=field.default, **kind)
    given = parser.parse_args(arguments)
    settings = Settings(**{field.name: getattr(given, field.name) for field in fields})
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    model = lm.load(given.model, "cpu" if several else given.device)
    if given.pairs:
        pairs = lm.pairs_from_text(model, data.load_pairs(given.data, given.pairs))
    elif given.behavior:
        behaviors = [data.load_behavior(name, given.data) for name in given.behavior]
        pairs = lm.pairs_from_behaviors(model, behaviors)
    else:
        raise InputError("nothing to train on; name --behavior or --pairs")
    if given.compile:
        model.network.base_model.compile(dynamic=True)  # the trie of each step has another shape
    learned, held_out = pairs.split()
    curves = train(model, learned, settings, given.out, held_out)
    last = ", ".join(f"{value:.4f}" for value in curves.loss[:, 1, -1])
    steps = len(curves.seconds)
    PartialState().print(f"held-out loss {last} after {steps} steps: {given.out}")


if __name__ == "__main__":
    try:
        main()
    except InputError as problem:
        sys.exit(f"error: {problem}")
