"""What DPO will do first with a preference data set: its gradient at the start, by groups.

At the start of DPO, π_θ = π_ref, the gradient of the loss (4) of pair i over the unembedding is
−(β/2) G_i with

    G_i = Σ_{t ∈ chosen} (e_{y_t} − p_t) h_tᵀ − Σ_{t ∈ rejected} (e_{y_t} − p_t) h_tᵀ ,  V × d,

h_t the hidden state that token y_t is predicted from, p_t the softmax there. A step of gradient
descent with learning rate η moves the gap log π(y_w|x) − log π(y_l|x) of pair i, to first order,
by (ηβ/2) ⟨G_i, M⟩, M the mean of all G: all that is told here are such inner products. They are
exact, and computed in slices of the vocabulary: of no pair or group is G ever whole in memory.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from .. import lm
from ..data import preferences
from ..errors import InputError
from ..lm import Model
from ..states import forward
from .pairs import tokenize

# Of fewer pairs of the same two responses no stratum is made.
MIN_STRATUM = 10
# Numbers in memory at once, of positions × a slice of the vocabulary.
_SLICE = 1 << 25


@dataclass(frozen=True)
class Audit:
    """Inner products of the first gradients of N pairs.

    Strata divide a group by what is answered: the pairs of the same two responses, where there are
    ``MIN_STRATUM`` of them, and all others. The mean of G over stratum s is M_s. Preferences for Yes and
    for No are no noise of each other, where a data set has as many of both.

    names     of the groups
    group     (N,) int: the group of each pair
    stratum   (N,) int: the stratum of each pair
    mirror    (strata,) int: that of the same group and responses with the other preference, or −1
    between   (strata, strata) ⟨M_s, M_s'⟩
    pull      (N, strata) ⟨G_i, M_s⟩
    squared_norm       (N,) ‖G_i‖²
    gap       (N,) log π(y_w|x) − log π(y_l|x) of the model as it is, nats
    twins     (N,) int: the first pair of the same tokens, itself where there is none before
    turned    (N,) int: a pair of the same tokens with the preference turned round, −1 if none
    """

    names: tuple[str, ...]
    group: np.ndarray
    stratum: np.ndarray
    mirror: np.ndarray
    between: np.ndarray
    pull: np.ndarray
    squared_norm: np.ndarray
    gap: np.ndarray
    twins: np.ndarray
    turned: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """(groups,) pairs of each group."""
        return np.bincount(self.group, minlength=len(self.names))

    @property
    def made_of(self) -> np.ndarray:
        """(groups, strata) share of a group's pairs in each: M_a = Σ_s made_of[a, s] M_s."""
        found = np.zeros((len(self.names), len(self.between)))
        np.add.at(found, (self.group, self.stratum), 1)
        return found / self.counts[:, None]

    @property
    def means(self) -> np.ndarray:
        """(groups, groups) ⟨M_a, M_b⟩."""
        return self.composition @ self.between @ self.composition.T

    @property
    def spread(self) -> np.ndarray:
        """(strata,) mean ‖G_i − E G‖² within each stratum, without bias; 0 for one pair alone."""
        size = np.bincount(self.stratum)
        within = np.bincount(self.stratum, self.squared_norm) / size - self.between.diagonal()
        return within * size / np.maximum(size - 1, 1)

    @property
    def shared(self) -> np.ndarray:
        """(groups, groups) ⟨M_a, M_b⟩ less what noise adds on the diagonal, without bias.

        What the pairs of a group have in common, and so what they do for a new one of it.
        """
        noise = self.composition**2 @ (self.spread / np.bincount(self.stratum))
        return self.means - np.diag(noise)

    @property
    def others(self) -> np.ndarray:
        """(N,) ⟨G_i, M_a without pair i⟩, a its group: negative where i goes against the others."""
        return (self._left_out * self.composition[self.group]).sum(1)

    @property
    def fit(self) -> np.ndarray:
        """(N,) ``others`` without what pairs of the same two responses share in either preference.

        A step that makes Yes likelier for any prompt helps all pairs that prefer it and harms the
        others; in a group it cancels. Of a stratum s with a mirror s' that part of G is
        (M_s − M_s')/2. Without it, below zero is where the pair would fit better turned round.
        """
        rows, size = np.arange(len(self.squared_norm)), np.bincount(self.stratum)[self.stratum]
        strata = np.eye(len(self.mirror))
        common = np.where(self.mirror[:, None] < 0, 0, (strata - strata[self.mirror]) / 2)
        rest = (self.composition @ (strata - common))[self.group]
        # ⟨C_s, M_t without pair i⟩, C_s the common part.
        left = (common @ self.between)[self.stratum]
        along = (self.pull * common[self.stratum]).sum(1) - left[rows, self.stratum]
        left[rows, self.stratum] -= along / np.maximum(size - 1, 1)
        return ((self._left_out - left) * rest).sum(1)

    @property
    def _left_out(self) -> np.ndarray:
        """(N, strata) ⟨G_i, M_s without pair i⟩; 0 where nothing is left of the stratum."""
        rows, size = np.arange(len(self.squared_norm)), np.bincount(self.stratum)[self.stratum]
        left = self.pull.copy()
        rest = size * left[rows, self.stratum] - self.squared_norm
        left[rows, self.stratum] = np.where(size > 1, rest / np.maximum(size - 1, 1), 0)
        return left

    def speeds(self, weights: Sequence[float] | None = None) -> np.ndarray:
        """(groups,) growth of the gap of a new pair of each group, nats per unit of ηβ/2.

        In a mixture in which the groups have ``weights``, by default their shares of the pairs.
        """
        return self.shared @ self._weights(weights)

    def errors(self, weights: Sequence[float] | None = None) -> np.ndarray:
        """(groups,) standard errors of ``speeds``, had other pairs of the same kinds been drawn.

        From what each pair adds, its product with itself left out; too large by √2 where a group
        has no signal at all.
        """
        rows, size = np.arange(len(self.squared_norm)), np.bincount(self.stratum)
        inside = self.pull[rows, self.stratum]
        alone = (
            self.squared_norm - 2 * inside + self.between.diagonal()[self.stratum]
        )  # ‖G_i − M_s‖²
        apart = self.pull - self.between[self.stratum]  # ⟨G_i − M_s, M_t⟩
        apart[rows, self.stratum] -= alone / np.maximum(size - 1, 1)[self.stratum]
        mixture = self._weights(weights) @ self.composition
        found = []
        for group in self.composition:
            adds = group[self.stratum] * (apart @ mixture) + mixture[self.stratum] * (apart @ group)
            mean = np.bincount(self.stratum, adds) / size
            square = np.bincount(self.stratum, (adds - mean[self.stratum]) ** 2)
            found.append(np.sqrt((square / np.maximum(size - 1, 1) / size).sum()))
        return np.array(found)

    def _weights(self, weights: Sequence[float] | None) -> np.ndarray:
        return self.counts / len(self.group) if weights is None else np.asarray(weights)

    @property
    def first_update(self) -> np.ndarray:
        """(groups,) share of each group in the first update: (n_a/N) ⟨M_a, M⟩ / ‖M‖², sums to 1."""
        weights = self.counts / len(self.group)
        towards = weights * (self.means @ weights)
        return towards / towards.sum()

    def undone(self) -> np.ndarray:
        """(groups, 2) least share of a group's pairs that, flipped, stop the group being learned.

        At the first step: alone, and in the mixture. The pairs that help most are flipped first.
        Above 1, of which no share is enough, stands inf.
        """
        weights, means = self.counts / len(self.group), self.means
        pull = (self.pull * self.composition[self.group]).sum(1)
        found = np.full((len(self.names), 2), np.inf)
        for a, n in enumerate(self.counts):
            # Flipping pair i takes 2 ⟨G_i, M_a⟩/n off ‖M_a‖².
            lost = 2 * np.cumsum(np.sort(pull[self.group == a])[::-1]) / n
            for kind, goal in enumerate((means[a, a], means[a] @ weights / weights[a])):
                enough = np.flatnonzero(lost >= goal)
                if goal <= 0:
                    found[a, kind] = 0
                elif len(enough):
                    found[a, kind] = (enough[0] + 1) / n
        return found


def audit(model: Model, pairs: lm.Pairs, names: Sequence[str]) -> Audit:
    """The first gradients of DPO on some pairs; ``pairs.group`` counts ``names``.

    A progress bar on stderr. For R positions of V words and d numbers it takes about
    2RVd(2 + strata) multiplications, beside one pass over the pairs.
    """
    import torch
    from tqdm import tqdm

    network, to = model.network, dict(device=model.network.device)
    unembedding = network.get_output_embeddings().weight.detach()
    pair, times, states, at, token, value = [], [], [], [], [], []
    with torch.inference_mode():
        lots = pairs.microbatches(1024)
        for members in tqdm(lots, desc="reading", unit="lot"):
            part = pairs.take(members)
            tree = part.trie()
            found = forward(network, tree)
            number: dict = defaultdict(count().__next__)
            logits, normalisers = lm.log_ratio_terms(tree, part)
            for i, row, y, sign in logits:
                at.append(len(pair) + number[i, row])
                token.append(y)
                value.append(sign)
            weights = {(i, row): sign for i, row, sign in normalisers}
            for i, row in number:
                times.append(weights.get((i, row), 0))
            states.append(found[[row for _, row in number]].float())
            pair.extend(int(members[i]) for i, _ in number)
        h, pair = torch.cat(states), torch.tensor(pair, **to)
        order = torch.argsort(pair, stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), **to)
        h, pair, times = h[order], pair[order], torch.tensor(times, **to)[order].float()
        at, token = place[torch.tensor(at, **to)], torch.tensor(token, **to)
        value = torch.tensor(value, **to).float()
        logit = (h[at] * unembedding[token].float()).sum(-1)
        if not times.any():  # as of one-token answers: only their rows move
            words, token = token.unique(return_inverse=True)
            unembedding = unembedding[words]
        normaliser = torch.cat(
            [(part @ unembedding.T.float()).logsumexp(-1) for part in h.split(lm.CHUNK)]
        )
        gap = torch.zeros(len(pairs), **to).index_add(0, pair[at], value * logit)
        gap.index_add_(0, pair, -times * normaliser)
        stratum, mirror = _strata(pairs)
        products = _products(h, normaliser, times, pair, (at, token, value), unembedding, stratum)
    twins, turned = _twins(pairs)
    told = (*products, gap.cpu().numpy(), twins, turned)
    return Audit(tuple(names), pairs.group, stratum, mirror, *told)


def _strata(pairs: lm.Pairs) -> tuple[np.ndarray, np.ndarray]:
    """``stratum`` and ``mirror`` of ``Audit``."""
    kinds = list(zip(pairs.group.tolist(), pairs.chosen, pairs.rejected, strict=True))
    often = {kind for kind, times in Counter(kinds).items() if times >= MIN_STRATUM}
    names = [kind if kind in often else kind[:1] for kind in kinds]
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    mirror = [number.get((name[0], *name[:0:-1]), -1) if name[1:] else -1 for name in number]
    return np.array([number[name] for name in names]), np.array(mirror)


def _products(h, normaliser, times, pair, ones, unembedding, stratum):
    """(between, pull, own) of ``Audit``, from R positions sorted by pair.

    ``h`` (R, d), log-normalisers and times p_t is taken off (R,), ``ones`` (position, token, times)
    of the e_{y_t}.
    """
    import torch
    from tqdm import tqdm

    to = dict(device=h.device)
    at, token, value = ones
    strata, total = int(stratum.max()) + 1, len(stratum)
    member = torch.tensor(stratum, **to)[pair]
    size = torch.bincount(torch.tensor(stratum, **to), minlength=strata)
    ends = torch.searchsorted(pair, torch.arange(total + 1, **to)).tolist()
    spans = [slice(*span) for span in pairwise(ends)]
    between = torch.zeros(strata, strata, dtype=torch.float64, **to)
    pull = torch.zeros(total, strata, dtype=torch.float64, **to)
    inner = [torch.zeros(span.stop - span.start, span.stop - span.start, **to) for span in spans]
    width = max(1, min(len(unembedding), _SLICE // max(1, len(h))))
    for start in tqdm(range(0, len(unembedding), width), desc="first gradient", unit="slice"):
        rows = unembedding[start : start + width].float()
        e = -times[:, None] * torch.exp(h @ rows.T - normaliser[:, None])
        here = (token >= start) & (token < start + len(rows))
        e.index_put_((at[here], token[here] - start), value[here], accumulate=True)
        means = torch.stack(
            [e[member == s].T @ h[member == s] / size[s] for s in range(strata)]
        ).double()
        flat = means.flatten(1)
        between += flat @ flat.T
        for s in range(strata):
            along = (e * (h @ means[s].T.float())).sum(1).double()
            pull[:, s].index_add_(0, pair, along)
        for square, span in zip(inner, spans, strict=True):
            square += e[span] @ e[span].T
    own = [
        (square * (h[span] @ h[span].T)).sum().item()
        for square, span in zip(inner, spans, strict=True)
    ]
    return between.cpu().numpy(), pull.cpu().numpy(), np.array(own)


def _twins(pairs: lm.Pairs) -> tuple[np.ndarray, np.ndarray]:
    """``twins`` and ``turned`` of ``Audit``."""
    content = list(zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True))
    first: dict[tuple, int] = {}
    for number, (x, chosen, rejected) in enumerate(content):
        first.setdefault((x, chosen, rejected), number)
    twins = np.array([first[key] for key in content])
    turned = np.array([first.get((x, rejected, chosen), -1) for x, chosen, rejected in content])
    return twins, turned


# What a report says of each group, by the column of ``table``.
TERMS = {
    "pairs": "How many.",
    "base gap": "Mean log π(chosen) − log π(rejected) of the model as it is, nats.",
    "already right": "Share of pairs for which that gap is above zero.",
    "strength": "Length of the gradient that all pairs of the group share, without noise: the "
    "signal. For answers of one token it is ‖b̂‖ / √2.",
    "coherence": "Squared strength over itself plus the spread of single pairs: 1 if all of them "
    "ask for the same, 0 if they have nothing in common.",
    "first update": "Share of the group in the first step of training on all groups.",
    "speed": "How fast the gap of a new pair of this group grows at first, trained on all groups. "
    "Negative: the others undo it.",
    "its error": "Standard error of that speed: how much it would differ for other pairs of the "
    "same kind. A speed of less than twice its error cannot be told from none.",
    "speed alone": "The same, trained on this group alone.",
    "error alone": "The standard error of that.",
    "against": "Share of pairs whose gradient points against the mean of the others of their "
    "group, apart from what all pairs of the same answers share: what mislabelled pairs do, and "
    "rare ones.",
    "undone by": "Least share of the group's pairs that, with their labels flipped, keep the group "
    "from being learned at the first step, trained alone.",
    "undone in the mixture": "The same, trained on all groups. inf: no share is enough, because "
    "the others teach it too.",
}


def table(found: Audit) -> pd.DataFrame:
    """``TERMS`` of each group: a row a group."""
    n, shared = found.counts, found.shared
    signal = np.maximum(shared.diagonal(), 0)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(found.group, values, len(n)) / n

    columns = (
        n,
        mean(found.gap),
        mean(found.gap > 0),
        np.sqrt(signal),
        signal / (signal + found.composition @ found.spread),
        found.first_update,
        found.speeds(),
        found.errors(),
        shared.diagonal(),
        [found.errors(alone)[a] for a, alone in enumerate(np.eye(len(n)))],
        mean(found.fit < 0),
        *found.undone().T,
    )
    return pd.DataFrame(dict(zip(TERMS, columns, strict=True)), index=list(found.names))


def cosines(found: Audit) -> pd.DataFrame:
    """Cosine of the gradients of every two groups, noise taken off; NaN where one has no signal."""
    shared = found.shared
    with np.errstate(invalid="ignore", divide="ignore"):
        length = np.sqrt(np.where(shared.diagonal() > 0, shared.diagonal(), np.nan))
        values = np.clip(shared / np.outer(length, length), -1, 1)
    return pd.DataFrame(values, list(found.names), list(found.names))


def report(found: Audit, rows: Sequence[dict], source: str, model: str, drawn: int = 0) -> str:
    """The report, one page of HTML that needs nothing else.

    ``rows``: the pairs' texts, as ``preferences.read`` gives them. ``drawn``: of how many they were
    drawn, 0 if they are all.
    """
    from importlib import resources

    import jinja2

    def told(number: int, value: float) -> dict:
        texts = {key: _text(rows[number][key]) for key in ("prompt", "chosen", "rejected")}
        group = found.names[found.group[number]]
        row = rows[number].get("row", number + 1)
        return {"number": row, "group": group, "value": f"{value:.3g}"} | texts

    fit = found.fit
    order = np.argsort(fit, kind="stable")
    lists = {
        "Pairs that help their group most": [told(i, fit[i]) for i in order[::-1][:10]],
        "Pairs that go against their group": [told(i, fit[i]) for i in order[:10] if fit[i] < 0],
        "The same pair with the preference turned round": [
            told(i, fit[i]) for i in np.flatnonzero(found.contradicted_by >= 0)[:10]
        ],
    }
    twice = int((found.duplicate_of != np.arange(len(rows))).sum())
    turned = int((found.contradicted_by >= 0).sum())
    warnings = []
    if twice:
        warnings.append(f"{twice} pairs repeat an earlier one, token by token.")
    if turned:
        warnings.append(f"{turned} pairs contradict another: same prompt, preference turned round.")
    groups = table(found)
    page = resources.files(__package__).joinpath("report.html").read_text("utf-8")
    return (
        jinja2.Environment(autoescape=True)
        .from_string(page)
        .render(
            source=source,
            pairs=len(rows),
            drawn=drawn,
            model=model,
            warnings=warnings,
            columns=list(groups),
            groups=[(name, [f"{v:.3g}" for v in values]) for name, *values in groups.itertuples()],
            cosines=[
                (name, ["–" if np.isnan(v) else f"{v:.2f}" for v in row])
                for name, *row in cosines(found).itertuples()
            ],
            lists=[(caption, shown) for caption, shown in lists.items() if shown],
            terms=TERMS,
        )
    )


def _text(value: str | list[dict], most: int = 400) -> str:
    """A text, or messages as text; the end of it, if it is long."""
    if not isinstance(value, str):
        value = "\n".join(f"{m['role']}: {m['content']}" for m in value)
    return value if len(value) <= most else "… " + value[-most:]


def main(arguments: Sequence[str] | None = None) -> None:
    """Tell from a model's first gradients what DPO will learn first of a preference data set.

    Raises InputError as ``preferences.read`` and ``lm.load``, and for a file in the way.
    """
    parser = argparse.ArgumentParser(prog="python -m dpo_helpers.audit", description=main.__doc__)
    parser.add_argument("source", help="a .jsonl, .jsonl.gz or .parquet file, or a hub data set")
    parser.add_argument("--group", help="the column that names a pair's group")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--pairs", type=int, default=1000, help="at most so many, drawn by lot")
    parser.add_argument("--out", type=Path, default=Path("audit.html"), help="audit.html")
    given = parser.parse_args(arguments)
    if given.pairs < 1:
        raise InputError(f"--pairs {given.pairs}: must be at least 1")
    beside = given.out.with_suffix(".json")
    _free(given.out, beside)
    whole = preferences.read(given.source, given.group)
    rows = preferences.drawn(whole, given.pairs)
    model = lm.load(given.model, given.device)
    pairs, names = tokenize(model, rows)
    found = audit(model, pairs, names)
    drawn_from = len(whole) if len(whole) > len(rows) else 0
    page = report(found, rows, Path(given.source).name, model.name, drawn_from)
    given.out.write_text(page, "utf-8")
    numbers = table(found)
    told = numbers.replace(np.inf, None).to_dict("index")
    beside.write_text(json.dumps(told, indent=1), "utf-8")
    print(numbers.to_string(float_format=lambda value: f"{value:.3g}"))
    print(f"the report: {given.out}")


def _free(page: Path, numbers: Path) -> None:
    """Raises InputError unless both can be written, over an earlier report or over nothing."""
    if page.suffix != ".html" or not page.parent.is_dir():
        raise InputError(f"--out {page}: must be a .html file in a folder that is there")
    try:
        ours = "<!-- dpo_helpers.audit -->" in page.read_text("utf-8")[:200]
    except (OSError, UnicodeDecodeError):
        ours = False
    for path in (page, numbers):
        if path.exists() and not ours:
            raise InputError(f"{path}: is there and no report; name another file with --out")
