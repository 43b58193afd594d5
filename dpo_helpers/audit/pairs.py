"""Rows of preference data as tokens."""

from collections.abc import Callable

import numpy as np

from .. import data, lm
from ..errors import InputError
from ..lm import Model


def tokenize(model: Model, rows: list[dict]) -> tuple[lm.Pairs, list[str]]:
    """The pairs as tokens, and the names of their groups in order of first appearance.

    Persona's rows as ``lm.pairs_from_behaviors``, others as ``lm.pairs_from_text``, messages through the
    model's chat template.

    Raises InputError as these, and for messages where the model has no template.
    """
    names = list(dict.fromkeys(row["group"] for row in rows))
    if all("label" in row for row in rows):
        import datasets

        table = datasets.Dataset.from_list([{"question": row["question"]} for row in rows])
        labels = np.array([row["label"] for row in rows], np.int8)
        pairs = lm.pairs_from_behaviors(model, [data.Behavior("", table, labels, "", "")])
    else:
        pairs = lm.pairs_from_text(model, [_spelt(model, row) for row in rows])
    group = np.array([names.index(row["group"]) for row in rows])
    return lm.Pairs(pairs.prompts, pairs.chosen, pairs.rejected, group), names


def _spelt(model: Model, row: dict) -> dict[str, str]:
    if isinstance(row["chosen"], str):
        return row
    if not model.tokenizer.chat_template:
        raise InputError(
            f"{model.name} has no chat template for lists of messages; give the pairs as text, or "
            "a model with a template"
        )
    spell: Callable = model.tokenizer.apply_chat_template
    prompt = spell(row["prompt"], tokenize=False, add_generation_prompt=True)
    told = {"prompt": prompt}
    for key in ("chosen", "rejected"):
        told[key] = spell(row["prompt"] + row[key], tokenize=False).removeprefix(prompt)
    return told
