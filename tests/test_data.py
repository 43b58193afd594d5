"""The embedded sample, the split, and folders laid out as upstream."""

import gzip
import json

import datasets
import numpy as np
import pytest

from dpo_helpers import data
from dpo_helpers.lm import CARDS
from ledger.store import ROOT

SAMPLE = sorted((ROOT / "dpo_helpers" / "data" / "sample" / "persona").glob("*.jsonl"))


def test_the_sample_has_six_behaviors():
    assert len(SAMPLE) == 6


@pytest.mark.parametrize("path", SAMPLE, ids=lambda p: p.stem)
def test_a_sample_behavior(path):
    behavior = data.load_behavior(path.stem)
    assert (behavior.labels == 1).sum() == (behavior.labels == -1).sum() == 50
    statements = behavior.rows["statement"]
    assert len(set(statements)) == 100
    openings = [tuple(s.lower().split()[:4]) for s in statements]
    assert len(set(openings)) == 100, "two statements open alike: a template?"
    for prompt, statement in zip(behavior.prompts(), statements, strict=True):
        asked = "Is the following statement something you would say?"
        assert prompt == f'{asked}\n"{statement}"\n'
    assert [p + "\n" for p in behavior.prompts(newline=False)] == behavior.prompts()


def test_sample_pairs():
    pairs = data.load_pairs()
    assert len(pairs) == 40 and len(set(pairs["prompt"])) == 40
    for pair in pairs:
        assert pair["prompt"].endswith("\n\nAssistant:")
        assert pair["chosen"] != pair["rejected"]


def test_the_split_is_the_papers():
    """datasets.shuffle(seed=1234), first 90 % to train."""
    for n in (518, 1000):
        shuffled = datasets.Dataset.from_dict({"i": range(n)}).shuffle(seed=1234)["i"]
        train, test = data.split(n)
        assert list(train) + list(test) == list(shuffled)
        assert len(train) == int(0.9 * n)


def test_a_folder_laid_out_as_upstream(tmp_path, monkeypatch):
    (tmp_path / "persona").mkdir()
    rows = [
        {
            "question": f'Is the following statement something you would say?\n"{i}"',
            "statement": str(i),
            "label_confidence": 1.0,
            "answer_matching_behavior": (" Yes", " No")[i % 2],
            "answer_not_matching_behavior": (" No", " Yes")[i % 2],
        }
        for i in range(6)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "persona" / "mine.jsonl").write_text(text)
    (tmp_path / "hh-rlhf" / "harmless-base").mkdir(parents=True)
    pair = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    with gzip.open(tmp_path / "hh-rlhf" / "harmless-base" / "test.jsonl.gz", "wt") as file:
        file.write(json.dumps(pair) + "\n")
    monkeypatch.setenv("DPO_DATA_DIR", str(tmp_path))
    for where in ("anthropic", str(tmp_path)):
        behavior = data.load_behavior("mine", where)
        np.testing.assert_array_equal(behavior.labels, [1, -1, 1, -1, 1, -1])
        assert data.load_pairs(where)[0] == {
            "prompt": "\n\nHuman: a\n\nAssistant:",
            "chosen": " b",
            "rejected": " c",
        }


def test_the_cards_of_the_models_are_those_of_the_code():
    page = (ROOT / "book" / "models.md").read_text("utf-8")
    for card in CARDS.values():
        assert f"`{card.name}`" in page
        assert card.license in page or card.tiny
        assert card.parameters in page and f"- {card.d}" in page


def test_the_hash_is_of_what_is_learned(tmp_path):
    """It changes with a statement, a label and the order, and with nothing else."""
    rows = [json.loads(line) for line in SAMPLE[0].read_text().splitlines()]
    folder = tmp_path / "persona"
    folder.mkdir()

    def sha256(changed: list[dict]) -> str:
        text = "".join(json.dumps(row) + "\n" for row in changed)
        (folder / "x.jsonl").write_text(text)
        return data.load_behavior("x", str(tmp_path)).sha256

    same = sha256(rows)
    assert sha256([row | {"label_confidence": 0.5} for row in rows]) == same
    assert sha256(rows[::-1]) != same
    flipped = dict(rows[0])
    flipped["answer_matching_behavior"], flipped["answer_not_matching_behavior"] = (
        flipped["answer_not_matching_behavior"],
        flipped["answer_matching_behavior"],
    )
    assert sha256([flipped, *rows[1:]]) != same
    assert sha256([rows[0] | {"question": "?"}, *rows[1:]]) != same
