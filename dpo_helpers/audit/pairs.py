"""Rows of preference data as tokens."""

import numpy as np

from .. import data, lm
from ..errors import InputError
from ..lm import Model


def tokenize(model: Model, rows: list[dict]) -> tuple[lm.Pairs, list[str]]:
    """The rows of ``preferences.read`` as pairs, and their groups' names in order of appearance.

    Rows in Persona's format become ``lm.pairs_from_behaviors``, others ``lm.pairs_from_text``.
    Messages pass the model's chat template.

    Raises InputError as these do, and for messages if the model has no chat template.
    """
    names = list(dict.fromkeys(row["group"] for row in rows))
    if all("label" in row for row in rows):
        import datasets

        table = datasets.Dataset.from_list([{"question": row["question"]} for row in rows])
        labels = np.array([row["label"] for row in rows], np.int8)
        pairs = lm.pairs_from_behaviors(model, [data.Behavior("", table, labels, "", "")])
    else:
        pairs = lm.pairs_from_text(model, [_as_text(model, row) for row in rows])
    group = np.array([names.index(row["group"]) for row in rows])
    return lm.Pairs(pairs.prompts, pairs.chosen, pairs.rejected, group), names


def _as_text(model: Model, row: dict) -> dict[str, str]:
    """A row whose prompt and responses are texts: messages pass the model's chat template."""
    if isinstance(row["chosen"], str):
        return row
    if not model.tokenizer.chat_template:
        raise InputError(
            f"{model.name} has no chat template for lists of messages; give the pairs as text, or "
            "choose a model with a template"
        )
    template = model.tokenizer.apply_chat_template
    prompt = template(row["prompt"], tokenize=False, add_generation_prompt=True)
    both = {
        key: template(row["prompt"] + row[key], tokenize=False) for key in ("chosen", "rejected")
    }
    return {"prompt": prompt} | {key: text.removeprefix(prompt) for key, text in both.items()}
