"""The audit: first gradients against autograd, a reader's data and its faults, the report."""

import dataclasses
import json
import re
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch

from dpo_helpers import audit, lm
from dpo_helpers.audit import __main__ as command_line
from dpo_helpers.data import preferences
from dpo_helpers.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def model():
    return lm.load("tiny-llama", "cpu")


@pytest.fixture(scope="module")
def pairs(model):
    """Random tokens: responses of several lengths, some that begin alike, one pair flipped.

    Group b has 12 pairs of the same two responses of one token, and so a stratum of its own.
    """
    rng = np.random.default_rng(0)

    def some(count: int) -> tuple[int, ...]:
        return tuple(rng.integers(5, model.network.config.vocab_size - 5, count).tolist())

    rows = []
    for i in range(15):
        chosen, rejected = some(1 + i % 4), some(1 + 2 * i % 5)
        rows.append((some(3 + i % 3), chosen, chosen[:1] + rejected if i % 3 == 0 else rejected))
    rows += [(some(4), (7,), (9,)) for _ in range(12)]
    rows += [(rows[0][0], rows[0][2], rows[0][1]), rows[1]]
    group = np.array([i % 3 for i in range(15)] + [1] * 12 + [0, 1])
    return lm.Pairs(*map(tuple, zip(*rows, strict=True)), group)


@pytest.fixture(scope="module")
def found(model, pairs):
    return audit.audit(model, pairs, NAMES)


@pytest.fixture(scope="module")
def gradients(model, pairs):
    """(N, V·d) float64: the gradient of each pair's gap over the unembedding, by autograd."""
    weight = model.network.get_output_embeddings().weight.detach().double().requires_grad_()
    rows, gaps = [], []
    for x, *both in zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True):
        gap = torch.zeros((), dtype=torch.float64)
        for y, sign in zip(both, (1, -1), strict=True):
            states = model.network.base_model(torch.tensor([x + y])).last_hidden_state[0]
            states = states.detach().double()[len(x) - 1 : -1]
            gap = gap + sign * (states @ weight.T).log_softmax(-1)[range(len(y)), list(y)].sum()
        rows.append(torch.autograd.grad(gap, weight)[0].flatten().numpy())
        gaps.append(gap.item())
    return np.stack(rows), np.array(gaps)


def test_inner_products_are_those_of_autograd(found, pairs, gradients):
    g, gaps = gradients
    means = np.stack([g[pairs.group == a].mean(0) for a in range(3)])
    scale = np.abs(means @ means.T).max()
    assert np.allclose(found.gap, gaps, atol=1e-4)
    assert np.allclose(found.means, means @ means.T, atol=1e-5 * scale)
    assert np.allclose(found.pair_stratum @ found.composition.T, g @ means.T, atol=1e-5 * scale)
    assert np.allclose(found.squared_norm, (g**2).sum(1), rtol=1e-5)


def test_slices_of_the_vocabulary_add_up(model, pairs, found, monkeypatch):
    monkeypatch.setattr(audit.gradient, "SLICE", 1000)
    sliced = audit.audit(model, pairs, NAMES)
    for name in ("stratum_gram", "pair_stratum", "squared_norm"):
        assert np.allclose(getattr(sliced, name), getattr(found, name), rtol=1e-4, atol=1e-4)


def test_a_small_step_does_what_was_predicted(found, pairs, gradients):
    """Gradient descent of the DPO loss on the last layer: gaps grow by (ηβ/2)⟨G_i, M⟩."""
    g, _ = gradients
    beta, rate = 0.1, 1e-3
    step = rate * beta / 2 * g.mean(0)
    weights = found.counts / len(pairs)
    predicted = rate * beta / 2 * (found.pair_stratum @ found.composition.T @ weights)
    assert np.allclose(g @ step, predicted, rtol=1e-4, atol=1e-7)
    share = [((g[pairs.group == a].sum(0) / len(g)) @ g.mean(0)) for a in range(3)]
    assert np.allclose(found.first_update, share / np.sum(share), rtol=1e-4)
    assert found.first_update.sum() == pytest.approx(1)


def test_strata_are_what_is_answered(found, pairs):
    inside = found.stratum[15:27]
    assert len(set(inside)) == 1 and (found.stratum == inside[0]).sum() == 12
    assert len(found.stratum_gram) == 4 and found.composition.sum(1) == pytest.approx(1)


def test_what_is_shared_is_shared_by_two_different_pairs(found, gradients):
    """Against the sum over pairs of different pairs, stratum by stratum."""
    g, _ = gradients
    inner = g @ g.T
    for a in range(3):
        total = 0.0
        for s, t in product(np.flatnonzero(found.composition[a]), repeat=2):
            one, other = (np.flatnonzero(found.stratum == x) for x in (s, t))
            block = inner[np.ix_(one, other)]
            mean = block.mean()
            if s == t:
                mean = (block.sum() - block.trace()) / (len(one) * (len(one) - 1))
            total += found.composition[a, s] * found.composition[a, t] * mean
        assert found.signal_gram[a, a] == pytest.approx(total, rel=1e-3, abs=1e-4)


def of_gradients(g, group, stratum, mirror) -> audit.Audit:
    """The audit of given gradients (N, numbers)."""
    means = np.stack([g[stratum == s].mean(0) for s in range(len(mirror))])
    products = (means @ means.T, g @ means.T, (g**2).sum(1))
    rest = (np.zeros(len(g)), np.arange(len(g)), np.full(len(g), -1))
    names = tuple("abc"[: group.max() + 1])
    return audit.Audit(names, group, stratum, np.array(mirror), *products, *rest)


def test_noise_alone_shares_nothing():
    """Gradients without a common part, half of them along +c and half along −c: on average 0."""
    rng, n, d = np.random.default_rng(0), 40, 5
    c, shared = 10 * np.ones(d), []
    for _ in range(200):
        g = np.repeat([[1], [-1]], n // 2, 0) * c + rng.normal(size=(n, d))
        stratum = np.repeat([0, 1], n // 2)
        made = of_gradients(g, np.zeros(n, int), stratum, [1, 0])
        shared.append(made.signal_gram[0, 0])
    assert abs(np.mean(shared)) < 3 * np.std(shared) / np.sqrt(len(shared))
    assert np.std(shared) < 0.1


def drawn(rng, n, signal):
    """Audits' products of made-up gradients: two groups of two strata each, on ±c as in Persona."""
    c, stratum = 10 * np.ones(6), np.repeat(np.arange(4), n)
    sign, group = np.where(stratum % 2, -1, 1), stratum // 2
    g = sign[:, None] * c + signal * np.eye(6)[group] + rng.normal(size=(4 * n, 6))
    return of_gradients(g, group, stratum, [1, 0, 3, 2])


@pytest.mark.parametrize(("signal", "factor"), [(2.0, 1.0), (0.0, 2**0.5)])
def test_errors_are_those_of_drawing_again(signal, factor):
    rng, weights = np.random.default_rng(0), [0.25, 0.75]
    audits = [drawn(rng, 30, signal) for _ in range(300)]
    for how in (None, weights, [1, 0]):
        speeds = np.array([found.speeds(how) for found in audits])
        errors = np.array([found.errors(how) for found in audits]).mean(0)
        scatter = speeds.std(0, ddof=1)
        assert np.allclose(errors, factor * scatter, rtol=0.15)


def test_others_leave_the_pair_out(found, gradients):
    g, _ = gradients
    for i in (0, 4, 15, 20):
        a, s = found.group[i], found.stratum[i]
        rest = [j for j in np.flatnonzero(found.stratum == s) if j != i]
        mean = sum(
            found.composition[a, t] * g[rest if t == s else found.stratum == t].mean(0)
            for t in np.flatnonzero(found.composition[a])
        )
        assert found.others[i] == pytest.approx(g[i] @ mean, rel=1e-3, abs=1e-4)


def test_a_wrong_label_fits_its_group_less_whatever_the_answer():
    """Two clouds along b with a long common part c, one label in ten wrong, more of one side."""
    rng, n = np.random.default_rng(0), 400
    truth = np.where(np.arange(n) < 260, 1, -1)
    wrong = rng.random(n) < 0.1
    label = np.where(wrong, -truth, truth)
    b, c = np.array([3.0, 0, 0, 0, 0, 0]), np.array([0.3, 20, 0, 0, 0, 0])
    g = label[:, None] * (c + truth[:, None] * b / 2 + rng.normal(size=(n, 6)))
    stratum = (label < 0).astype(int)
    found = of_gradients(g, np.zeros(n, int), stratum, [1, 0])
    # A pair lies 1.5 deviations from the middle along b: none divides better than Φ(1.5) = 0.93.
    assert (found.leave_one_out_score[wrong] < 0).mean() > 0.85 and (
        found.leave_one_out_score[~wrong] < 0
    ).mean() < 0.12
    assert (found.others[~wrong] < 0).mean() > 0.3, "the other measure sees the answers"
    plain = dataclasses.replace(found, mirror=np.array([-1, -1]))
    assert np.allclose(plain.leave_one_out_score, plain.others)


def test_what_is_taken_off_is_what_both_preferences_share(gradients, found, pairs):
    """⟨G_i − C, M_a without i⟩ from whole gradients, of a group with two mirrored strata."""
    g, _ = gradients
    g = np.concatenate([g[15:27], g[:11]])
    stratum = np.repeat([0, 1], [12, 11])
    means = np.stack([g[stratum == s].mean(0) for s in (0, 1)])
    made = of_gradients(g, np.zeros(23, int), stratum, [1, 0])
    common = (means[0] - means[1]) / 2
    for i in (0, 11, 12, 22):
        left = [g[(stratum == s) & (np.arange(23) != i)].mean(0) for s in (0, 1)]
        expected = (g[i] - (common if i < 12 else -common)) @ (left[0] + left[1]) / 2
        assert made.leave_one_out_score[i] == pytest.approx(expected, rel=1e-6)


def test_strata_that_mirror_each_other(pairs):
    members = np.arange(15, 27)
    one, other = pairs.take(members), pairs.take(members).flipped()
    columns = (getattr(one, x) + getattr(other, x) for x in ("prompts", "chosen", "rejected"))
    both = lm.Pairs(*columns, np.ones(24, int))
    assert audit.gradient.strata(both)[1].tolist() == [1, 0]
    apart = dataclasses.replace(both, group=np.repeat([0, 1], 12))
    assert audit.gradient.strata(apart)[1].tolist() == [-1, -1], "of another group"
    assert (audit.gradient.strata(pairs)[1] == -1).all()


def test_flipping_that_share_stops_the_group(found, gradients):
    g, _ = gradients
    alone = found.flip_fraction()[:, 0]
    for a in range(3):
        members = np.flatnonzero(found.group == a)
        mean = g[members].mean(0)
        order = members[np.argsort(-(g[members] @ mean))]
        flipped = round(alone[a] * len(members))
        for count, stopped in ((flipped, True), (flipped - 1, False)):
            signs = np.where(np.isin(members, order[:count]), -1, 1)
            assert ((signs[:, None] * g[members]).mean(0) @ mean <= 1e-9) == stopped


def test_doubles_and_contradictions_are_found(found):
    assert found.duplicate_of.tolist() == [*range(28), 1]
    assert (
        found.contradicted_by[[0, 27]].tolist() == [27, 0]
        and (found.contradicted_by >= 0).sum() == 2
    )


def write(folder, name, rows):
    path = folder / name
    if name.endswith(".parquet"):
        pd.DataFrame(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


PAIR = {"prompt": "Q: why?", "chosen": " Because.", "rejected": " No idea."}
WHOLE = {key: PAIR["prompt"] + PAIR[key] for key in ("chosen", "rejected")}
HH = {
    key: f"\n\nHuman: why?\n\nAssistant:{PAIR[key]}\n\nHuman: and?\n\nAssistant: {key}"
    for key in ("chosen", "rejected")
}
TALK = {
    "prompt": [{"role": "user", "content": "why?"}],
    "chosen": [{"role": "assistant", "content": "Because."}],
    "rejected": [{"role": "assistant", "content": "No idea."}],
}
TALKS = {key: TALK["prompt"] + TALK[key] for key in ("chosen", "rejected")}
PERSONA = {
    "question": "Would you say this?",
    "answer_matching_behavior": " No",
    "answer_not_matching_behavior": " Yes",
}


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.parquet"])
def test_pairs_with_a_prompt_and_groups(tmp_path, name):
    source = write(tmp_path, name, [PAIR | {"topic": "x"}, PAIR | {"topic": "y"}])
    expected = [PAIR | {"group": group, "row": row} for row, group in enumerate("xy", 1)]
    assert preferences.read(source, "topic") == expected


def test_prompts_that_stand_in_the_responses(tmp_path):
    rows = preferences.read(write(tmp_path, "a.jsonl", [WHOLE, HH, TALKS]))
    # What both begin with: the first space of the responses, too.
    assert rows[0]["prompt"] + rows[0]["chosen"] == WHOLE["chosen"]
    assert rows[0]["prompt"] + rows[0]["rejected"] == WHOLE["rejected"]
    assert rows[1]["prompt"].endswith("\n\nAssistant:") and rows[1]["prompt"].count("Human") == 1
    assert {key: rows[2][key] for key in TALK} == TALK


def test_statements_of_persona_are_answered_yes_or_no(tmp_path, model):
    rows = preferences.read(write(tmp_path, "a.jsonl", [PERSONA]))
    pairs, names = audit.tokenize(model, rows)
    assert names == ["all pairs"] and pairs.chosen == ((model.no,),)
    assert pairs.rejected == ((model.yes,),)
    assert list(pairs.prompts[0]) == model.tokenizer(PERSONA["question"] + "\n").input_ids


def test_of_many_pairs_as_many_are_drawn_as_asked_for(tmp_path):
    rows = [PAIR | {"prompt": str(i)} for i in range(50)]
    source = write(tmp_path, "a.jsonl", rows)
    read = preferences.drawn(preferences.read(source), 10)
    drawn = [int(row["prompt"]) for row in read]
    assert drawn == sorted(set(drawn)) and len(drawn) == 10
    assert [row["row"] - 1 for row in read] == drawn, "the number in the file"
    assert drawn == [int(row["prompt"]) for row in preferences.drawn(preferences.read(source), 10)]


@pytest.mark.parametrize(
    ("row", "column", "parts"),
    [
        ({"prompt": "x", "good": "y", "rejected": "z"}, None, ["no chosen", "prompt, good"]),
        (PAIR, "topik", ["unknown column 'topik'"]),
        (PAIR | {"rejected": PAIR["chosen"]}, None, ["the same", "leave the row out"]),
        (PAIR | {"chosen": 3}, None, ["chosen = 3", "neither text"]),
        (PAIR | {"chosen": [{"role": "user"}]}, None, ["neither text", "role and content"]),
        (PAIR | {"chosen": TALK["chosen"]}, None, ["prompt, chosen, rejected must all be text"]),
        ({"chosen": "yes", "rejected": "no"}, None, ["share no prompt", "add a column prompt"]),
        (PERSONA | {"answer_matching_behavior": "Maybe"}, None, ["= 'Maybe'", "must be Yes or No"]),
        (PERSONA | {"question": ""}, None, ["question", "empty"]),
        ([1, 2], None, ["not an object"]),
    ],
)
def test_a_bad_row_names_its_line_and_the_remedy(tmp_path, row, column, parts):
    source = write(tmp_path, "a.jsonl", [PAIR | {"topic": "x"} if column is None else PAIR, row])
    with pytest.raises(InputError) as caught:
        preferences.read(source, column)
    text = str(caught.value)
    assert all(part in text for part in parts) and "\n" not in text
    assert column or "line 2" in text


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.csv", b"prompt,chosen\n", "not a .jsonl"),
        ("a.parquet", b"not parquet", "cannot be read"),
        ("a.jsonl", b"", "holds no rows"),
    ],
)
def test_a_file_that_is_no_data_set(tmp_path, name, content, part):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=part):
        preferences.read(str(tmp_path / name))


def test_a_name_that_is_no_file_needs_the_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="no such file, and the hub cannot be reached"):
        preferences.read("someone/preferences")


def test_messages_need_a_template(tmp_path, model):
    rows = preferences.read(write(tmp_path, "a.jsonl", [TALK]))
    with pytest.raises(InputError, match="no chat template"):
        audit.tokenize(model, rows)


def test_messages_go_through_the_template(tmp_path, model, monkeypatch):
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    monkeypatch.setattr(model.tokenizer, "chat_template", template)
    rows = preferences.read(write(tmp_path, "a.jsonl", [TALK]))
    pairs, _ = audit.tokenize(model, rows)
    expected = lm.pairs_from_text(
        model, [{"prompt": "<user>why?<assistant>", "chosen": "Because.", "rejected": "No idea."}]
    )
    assert (pairs.prompts, pairs.chosen, pairs.rejected) == (
        expected.prompts, expected.chosen, expected.rejected
    )  # fmt: skip


def test_the_command_writes_a_report_and_its_numbers(tmp_path, capsys):
    rows = [
        PAIR | {"prompt": f"<b>{i}</b> why?", "topic": topic, "chosen": f" Because of {i}."}
        for i, topic in enumerate("xyxyxy")
    ]
    out = tmp_path / "report.html"
    command = [write(tmp_path, "a.jsonl", rows), "--group", "topic", "--model", "tiny-llama"]
    command += ["--out", str(out), "--device", "cpu"]
    command_line.main(command)
    page = out.read_text()
    assert "&lt;b&gt;0&lt;/b&gt; why?" in page and "<b>0</b>" not in page, "texts are escaped"
    assert "http" not in page, "nothing is fetched"
    numbers = json.loads(out.with_suffix(".json").read_text())
    assert list(numbers) == ["x", "y"] and list(numbers["x"]) == list(audit.TERMS)
    assert numbers["x"]["pairs"] == 3 and str(out) in capsys.readouterr().out
    command_line.main(command)  # a report makes room for the next


@pytest.mark.parametrize(
    ("there", "out", "part"),
    [
        ("report.html", "report.html", "report.html: exists and is not a report; choose another"),
        ("report.json", "report.html", "report.json: exists and is not a report; choose another"),
        ("report.json", "report.json", "must be a .html file"),
        ("report.html", "nowhere/report.html", "in an existing folder"),
    ],
)
def test_the_command_overwrites_nothing_else(tmp_path, there, out, part):
    (tmp_path / there).write_text("mine")
    with pytest.raises(InputError, match=re.escape(part)):
        command_line.main([write(tmp_path, "a.jsonl", [PAIR]), "--out", str(tmp_path / out)])
    assert (tmp_path / there).read_text() == "mine"


def test_a_report_names_the_rows_of_the_file(found, pairs):
    rows = [PAIR | {"row": 1000 + i} for i in range(len(pairs))]
    page = audit.report(found, rows, "pairs", "tiny-llama", drawn=5000)
    assert ">1000<" in page and ">1027<" in page, "the flipped pair and its counterpart"
    assert "of 5000, drawn" in page


def test_of_one_token_answers_the_rest_of_the_vocabulary_is_left_out(model, pairs, found):
    """Alone, and beside pairs of which it is not: the same products."""
    members = np.arange(15, 27)
    alone = audit.audit(model, pairs.take(members), NAMES)
    s = found.stratum[15]
    assert np.allclose(alone.squared_norm, found.squared_norm[members], rtol=1e-5)
    assert np.allclose(alone.gap, found.gap[members], rtol=1e-5)
    assert alone.stratum_gram[0, 0] == pytest.approx(found.stratum_gram[s, s], rel=1e-5)
    assert np.allclose(alone.pair_stratum[:, 0], found.pair_stratum[members, s], rtol=1e-5)
