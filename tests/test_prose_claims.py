"""Sentences that depend on the outcome of a run, each with a predicate of the recorded runs.

``CLAIMS``, at the end, is the table: for each page, a sentence as its source has it, and whether it
holds. If a run is recorded anew with another outcome, the row fails and quotes its sentence. Where
a page computes what it says, the predicate takes it from the page's own cells.
"""

import re
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace

import cells
import numpy as np
import pandas as pd
import pytest

from experiments import full_finetuning, hh_rlhf, misalignment, priorities, remedy
from experiments.second_llm import agreement
from experiments.shared import distinguishability
from ledger.config import configure
from ledger.store import ROOT, RunStore
from workflow import notebook


@cache
def records() -> RunStore:
    return RunStore(configure({}))


def interval(cell: str) -> list[float]:
    """A rank correlation and its interval, as the tables of pages have them."""
    return [float(x) for x in re.findall(r"-?\d\.\d+", cell)]


def contains_zero(values) -> bool:
    """Whether the interval of (statistic, low, high) contains zero and more on either side."""
    _, low, high = values
    return low < 0 < high


# Chapter 5: full fine-tuning


def second_behavior_is_first_with_every_seed():
    both = [full_finetuning.areas(records(), 0.01, 1e-5, part) for part in (0, 1)]
    return all((areas.argmin(0) == 1).all() for areas in both)


def second_behavior_is_third_most_distinguishable():
    rank = (-distinguishability(records(), full_finetuning.MAIN["book"])).argsort().tolist()
    return rank.index(1) == 2


def fifth_behavior_overtakes_the_second():
    rate = full_finetuning.rates(records(), 0.01)["scaled"]
    main = full_finetuning.MAIN["book"]
    losses = full_finetuning.stacked(records(), main, 0.01, rate, "loss", (0,))
    held_out = losses[:, 0, 0, 1]
    return held_out[4, -1] < held_out[1, -1]


# Chapter 7: misalignment


@cache
def flipped(what: str, name: str = "scaled") -> np.ndarray:
    """Recorded arrays of the runs on flipped labels: (behaviors, seeds, runs, …)."""
    return misalignment.flipped(records(), misalignment.everyone(records()), name, what)


def leads(name: str) -> np.ndarray:
    """Leads of the aligned model: (behaviors, seeds, training and held out)."""
    return misalignment.lead(np.moveaxis(flipped("loss", name), 3, 2))


def every_lead_is_positive():
    return all((leads(name) > 0).all() for name in full_finetuning.rates(records(), 0.01))


def least_distinguishable_has_the_smallest_lead():
    found = leads("paper")
    return (found[0] < found[1:] / 2).all()


@cache
def three_quarters_flipped() -> tuple[np.ndarray, np.ndarray]:
    """First step with 75 % of held-out answers flipped, and if there is none: (5, seeds, runs)."""
    there = flipped("accuracy")[:, :, :, 1] >= 0.75
    return there.argmax(-1), ~there.any(-1)


def steps_later() -> np.ndarray:
    """How many steps later an aligned model is flipped than the base model, a run each."""
    step, never = three_quarters_flipped()
    return (step[:, :, 1] - step[:, :, 0])[~never[:, :, 1]]


def aligned_models_are_flipped_a_few_steps_later():
    return 0 < np.median(steps_later()) < 5


def some_aligned_models_are_flipped_sooner():
    return steps_later().min() < 0


def one_run_is_never_flipped():
    _, never = three_quarters_flipped()
    return not never[:, :, 0].any() and never[:, :, 1].sum() == never[0, :, 1].sum() == 1


def classes_stay_apart():
    base, aligned = np.moveaxis(flipped("apart")[:, :, :2], 2, 0)
    return (np.nanmin(aligned, -1) > 2 * base[:, :, 0]).all()


def distance_of_classes_shrinks():
    aligned = flipped("apart")[:, :, 1]
    lowest = np.nanmin(aligned, -1)
    return (lowest < aligned[:, :, 0]).all() and np.median(lowest / aligned[:, :, 0]) < 0.5


def gap_changes_more_and_parameters_less():
    gap, moved = flipped("gap")[:, :, :2, 1], flipped("moved")[..., -1]
    changed = gap[..., -1] - gap[..., 0]
    more = (changed[:, :, 1] > changed[:, :, 0]).all()
    return more and (moved[:, :, 1] < moved[:, :, 0]).all()


def last_layer_is_proven_faster():
    bounds = flipped("certified")[:, 0]  # (behaviors, runs, (lower, upper), steps)
    return (bounds[:, 1, 1] < bounds[:, 0, 0])[:, 1:].all()


@cache
def examples_that_undo() -> list[float]:
    """The smallest number of flipped examples that undoes each behavior, in ascending order."""
    rate = full_finetuning.rates(records(), 0.01)["scaled"]
    everyone = misalignment.everyone(records())
    attacks = [misalignment.undone_run(records(), b, rate, 0).arrays for b in everyone]
    return sorted(a["pairs"][a["gap"] <= a["base"][0]][0] for a in attacks)


# Chapter 8: dialogues


@cache
def dialogue_arms(name: str) -> SimpleNamespace:
    """Arrays of the runs on flipped labels: from the base model, then from the aligned one."""
    base, own, other, merged = hh_rlhf.arms(records(), hh_rlhf.rates(records())[name]).values()
    return SimpleNamespace(base=base, own=own, base_reference=other, merged=merged)


def gaps(each: np.ndarray) -> np.ndarray:
    """log π(chosen|x) − log π(rejected|x) from the two log-probabilities, (n, 2)."""
    return -np.diff(each.astype(float))[:, 0]


@cache
def aligning() -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities (n, 2) of held-out responses before and after aligning, scaled rate."""
    rate = hh_rlhf.rates(records())["scaled"]
    return tuple(hh_rlhf.aligned_run(records(), rate, 0).arrays["each"])


def rule_takes_the_largest_rate():
    largest = max(hh_rlhf.FACTORS["book"]) * hh_rlhf.RATE
    return hh_rlhf.rates(records())["scaled"] == largest


def most_of_the_lead_remains_with_a_new_adapter():
    runs = dialogue_arms("scaled")
    own, new = (
        misalignment.lead(np.stack([runs.base["loss"][0], run["loss"][0]]))
        for run in (runs.own, runs.merged)
    )
    return own > new > own / 2 > 0


def held_out_leads() -> list[np.ndarray]:
    """Lead in held-out loss against step, with the trained adapter and with a new one."""
    runs = dialogue_arms("scaled")
    return [runs.base["loss"][1] - run["loss"][1] for run in (runs.own, runs.merged)]


def held_out_lead_is_early():
    return all(np.nanargmax(ahead) <= len(ahead) / 3 for ahead in held_out_leads())


def base_model_catches_up():
    gone = all(ahead[-1] < np.nanmax(ahead) / 10 for ahead in held_out_leads())
    return gone and held_out_leads()[1][-1] < 0


def undone_only_with_the_base_reference():
    runs = dialogue_arms("scaled")
    start = hh_rlhf.gap(runs.base)[:1]
    own, base_reference = (
        hh_rlhf.undone(start, hh_rlhf.gap(run))[-1] for run in (runs.own, runs.base_reference)
    )
    return own < 0.9 < 1 < base_reference


def both_fall_by_more_than_the_gap_grows():
    before, after = (each.mean(0) for each in aligning())
    fall = before - after
    grown = fall[1] - fall[0]
    return (fall > 2 * grown).all() and fall[1] > fall[0] > 0


def base_loses_likelihood_and_aligned_regains_part():
    runs = dialogue_arms("scaled")
    return all(
        runs.base[what][-1] < runs.base[what][0]
        and runs.own[what][0] < runs.own[what][-1] < runs.base[what][0]
        for what in ("preferred", "other")
    )


def lead_at_the_papers_rate_is_within_two_errors():
    losses = np.stack([run["loss"][0] for run in vars(dialogue_arms("paper")).values()])
    ahead = (losses[0] - losses[1])[:-1]
    return abs(misalignment.lead(losses)) < 2 * ahead.std(ddof=1) / np.sqrt(len(ahead))


def rounding_changes_gaps_as_much_as_aligning():
    runs = dialogue_arms("paper")
    base, own, merged = (gaps(run["each"][0]) for run in (runs.base, runs.own, runs.merged))
    rounding, added = merged - own, own - base
    return np.sqrt((rounding**2).mean()) > 0.5 * np.sqrt((added**2).mean())


def each_pair_loses_what_aligning_added():
    before, after = map(gaps, aligning())
    first, last = map(gaps, dialogue_arms("scaled").base_reference["each"])
    return np.corrcoef(first - last, after - before)[0, 1] > 0.99


# Chapter 9: the second LLM


def second_llm() -> SimpleNamespace:
    return cells.executed("09_mistral")


def agreement_of_models(what: str) -> tuple[float, float, float]:
    """Rank correlation of a measure of all behaviors between the models, with its interval."""
    return agreement(*second_llm().survey[what].to_numpy().T)


def models_agree_on_distinguishability():
    return len(second_llm().survey) == 100 and agreement_of_models("apart")[1] > 0.8


def growth_per_rate() -> list[np.ndarray]:
    """Growth of the gap per unit of learning rate, (paper, scaled), of either model."""
    page = second_llm()
    return [
        page.steps.loc[who.config.model, "per 1e-6 of η"].to_numpy()
        for who in (page.records, page.other)
    ]


def one_unit_moves_the_second_model_further():
    first, second = growth_per_rate()
    return second.min() > 4 * first.max()


def first_model_grows_in_proportion():
    first, _ = growth_per_rate()
    return abs(first[1] / first[0] - 1) < 0.1


def second_model_grows_faster():
    _, second = growth_per_rate()
    return second[1] > 1.5 * second[0]


def order_learned(name: str) -> list[int]:
    """The behaviors of Figure 10 from the last learned to the first, by mean held-out loss."""
    page = second_llm()
    return np.argsort(-page.losses[page.rates[name]][:, 1].mean(-1)).tolist()


def distinguishability_order() -> list[int]:
    """The behaviors of Figure 10 from the least distinguishable in the second model."""
    return np.argsort(second_llm().apart).tolist()


def two_neighbors_swap_places():
    found = order_learned("scaled")
    return [found[i] for i in (0, 1, 3, 2, 4)] == distinguishability_order()


def swapped_neighbors_are_equally_distinguishable():
    apart = second_llm().apart
    swapped = sorted(order_learned("scaled")[2:4]) == [1, 3]
    return swapped and abs(apart[1] / apart[3] - 1) < 0.03


def first_pair_has_the_larger_priority_gap():
    levels = second_llm().priorities["|P₁ − P₂|"]
    return levels["(a)"] > 2 * levels["(b)"]


def ratio_of_differences(name: str) -> float:
    """Mean |L₁ − L₂| of pair (a) over that of pair (b), from the first step."""
    page = second_llm()
    a, b = (page.pair_losses[letter, page.rates[name]][:, 1:] for letter in "ab")
    return np.abs(a[0] - a[1]).mean() / np.abs(b[0] - b[1]).mean()


def lower_priority_has_the_lower_loss():
    page = second_llm()
    level = page.priorities.loc["(b)"]
    losses = [page.pair_losses["b", rate][:, 1:] for rate in page.rates.values()]
    return level["P₁"] < level["P₂"] and all((one < two).all() for one, two in losses)


def leads_of_second_model() -> np.ndarray:
    """Leads (rates, behaviors, training and held out) of the aligned second model."""
    page, what = second_llm(), ["lead", "lead, held-out"]
    rates = [f"{rate:g}" for rate in page.rates.values()]
    return np.array([[[page.leads[b, r][w] for w in what] for b in page.two] for r in rates])


def low_distinguishability_has_a_small_lead():
    low, high = np.moveaxis(leads_of_second_model(), 1, 0)
    return (low < high / 4).all()


def panels_where_base_ends_lower(part: int) -> set[tuple[bool, str]]:
    """(whether it is the first behavior, rate) where the base model's last loss is the lower."""
    page, found = second_llm(), set()
    for (behavior, rate), runs in page.flipped.items():
        base, aligned = (losses[np.isfinite(losses)][-1] for losses in runs[:2, part])
        if base < aligned:
            name = next(name for name, value in page.rates.items() if value == rate)
            found.add((behavior == page.two[0], name))
    return found


def base_ends_lower_on_all_last_batches_but_one():
    found = panels_where_base_ends_lower(0)
    return len(found) == 3 and (False, "scaled") not in found


def hidden_states_of_second_model() -> list[SimpleNamespace]:
    """Of each behavior and rate: ‖b̂‖, q₁ and q₂, (before and after, parts), and v before."""
    page, found = second_llm(), []
    for (behavior, rate), arrays in page.trained.items():
        b, variance = (arrays[x].astype(float) for x in ("apart", "covariance"))
        measures = SimpleNamespace(b=b, q1=variance / b, q2=variance / b**2)
        measures.v = page.other.states(behavior).along[0]
        measures.which = (behavior, rate)
        found.append(measures)
    return found


def distance_of_means_grows_several_times():
    return all((x.b[1] > 3 * x.b[0]).all() for x in hidden_states_of_second_model())


def q1_increases():
    return all(x.q1[1, 0] > x.q1[0, 0] for x in hidden_states_of_second_model())


def q2_decreases():
    return all(x.q2[1, 0] < x.q2[0, 0] for x in hidden_states_of_second_model())


def q2_below_v(name: str) -> list[bool]:
    """Whether q₂ after training is below v before at a learning rate, first behavior first."""
    found = {x.which: x.q2[1, 0] < x.v for x in hidden_states_of_second_model()}
    page = second_llm()
    return [found[behavior, page.rates[name]] for behavior in page.two]


# Chapter 10: the atlas

FULL, TRAINING, HELD_OUT = "all parameters, drawn", "last layer, training", "last layer, all"
BASE_ANSWERS = ("base accuracy", "base gap")
PROBES = ("probe margin", "probe accuracy")


def atlas() -> SimpleNamespace:
    return cells.executed("10_atlas")


@cache
def rank_correlation(predictor: str, speed: str) -> tuple[float, float, float]:
    """Rank correlation of a predictor with a speed, and its interval."""
    y = atlas().speed_of(atlas().found, speed)
    return agreement(atlas().found.loc[y.index, predictor].to_numpy(), y.to_numpy())


@cache
def advantage(predictor: str, speed: str) -> tuple[float, float, float]:
    """Rank correlation of a predictor with a speed less that of ‖b̂‖, and its interval."""
    y = atlas().speed_of(atlas().found, speed)
    columns = atlas().found.loc[y.index, [predictor, "apart"]]
    return atlas().advantage(*columns.to_numpy().T, y.to_numpy())


@cache
def correlations_with_full() -> dict[str, tuple[float, float, float]]:
    """Rank correlation of every predictor with the speed of all parameters."""
    return {of: rank_correlation(of, FULL) for of in atlas().titles}


def epochs() -> tuple[pd.Series, pd.Series]:
    """Rank correlations by predictor over the first steps, and over the whole epoch."""
    same = atlas().same_behaviors
    return tuple(same[column].map(lambda cell: interval(cell)[0]) for column in same)


def one_drawn_behavior_has_half_as_many_steps():
    lengths = atlas().lengths[atlas().drawn]
    short = lengths.iloc[:10].min() == atlas().steps == 15
    others = len(lengths) - 1 == len(atlas().full_epoch) == 19
    return short and others and sorted(lengths)[:2] == [15, 29]


def last_layer_is_ordered_almost_perfectly():
    return all(rank_correlation(of, HELD_OUT)[0] > 0.9 for of in ("apart", "certified"))


def base_model_says_little():
    return all(rank_correlation(of, HELD_OUT)[0] < 0.4 for of in BASE_ANSWERS)


def speed_on_training_statements_is_predicted():
    return all(rank_correlation(of, TRAINING)[0] > 0.99 for of in ("apart", "certified"))


def worse_than_distinguishability(predictors: tuple[str, ...]) -> bool:
    """Whether each advantage over ‖b̂‖ is below zero, interval included, for the last layer."""
    speeds = (HELD_OUT, TRAINING, "last layer, drawn")
    return all(advantage(of, speed)[2] < 0 for of in predictors for speed in speeds)


def last_layer_as_well_as_certificate_and_better_than_others():
    middle, low, high = advantage("certified", HELD_OUT)
    equal = low < 0 < high and abs(middle) < 0.02
    return equal and worse_than_distinguishability((*PROBES, *BASE_ANSWERS))


def no_predictor_stands_out():
    rhos = correlations_with_full()
    near = [rhos[of][0] for of in ("probe margin", "certified", "apart")]
    return max(rhos.values())[0] == max(near) and np.ptp(near) < 0.06


def correlation_is_positive_but_lower_than_for_the_last_layer():
    rho, low, _ = correlations_with_full()["apart"]
    return low > 0.2 and rho < rank_correlation("apart", "last layer, drawn")[0] - 0.1


def intervals_are_wide():
    return all(high - low > 0.25 for _, low, high in correlations_with_full().values())


def correlation_in_half(half: slice) -> float:
    """Rank correlation of ‖b̂‖ with the speed of all parameters in a part of the draw."""
    part = atlas().found.loc[atlas().drawn].iloc[half]
    return agreement(part["apart"].to_numpy(), part["all parameters"].to_numpy())[0]


def probes_correlate_more_over_the_epoch():
    first, epoch = epochs()
    names = [f"linear probe, {more}" for more in ("margin", "accuracy")]
    return (epoch[names] > first[names] + 0.05).all()


def distinguishability_hardly_changes():
    first, epoch = epochs()
    return abs(epoch["‖b̂‖"] - first["‖b̂‖"]) < 0.05


def probe_margin_is_highest_over_the_epoch():
    _, epoch = epochs()
    return epoch["linear probe, margin"] > sorted(epoch)[-2] + 0.1


def probe_margin_is_a_little_higher_over_the_first_half():
    first, _ = epochs()
    half = atlas().same_behaviors.columns.tolist() == ["15 steps", "29 steps"]
    certificate = first["certificate: proven loss decrease"]
    return half and 0 < first["linear probe, margin"] - min(first["‖b̂‖"], certificate) < 0.1


def no_advantage_over_the_epoch():
    return contains_zero(interval(atlas().ahead))


def probe_margin_is_highest_but_not_beyond_chance():
    return probe_margin_is_highest_over_the_epoch() and no_advantage_over_the_epoch()


def no_advantage_for_all_parameters():
    others = set(correlations_with_full()) - {"apart"}
    bounds = [advantage(of, FULL)[1:] for of in others]
    return no_advantage_over_the_epoch() and all(low <= 0 <= high for low, high in bounds)


def nine_pairs_in_ten_are_decided():
    return (atlas().shares["decided"].astype(float) > 0.9).all()


def as_proven() -> pd.Series:
    """The share of decided pairs of behaviors measured in the proven order, by speed."""
    return atlas().shares["of these as proven"].astype(float)


def most_decided_pairs_are_as_proven():
    right = as_proven()
    most = right[TRAINING] > 0.99 and (right.drop(FULL) > 0.9).all()
    return most and 0.75 < right[FULL] < 0.8


def distinguishability_orders_nearly_as_many():
    less = as_proven() - atlas().shares["all as ‖b̂‖ orders"].astype(float)
    return less.drop(TRAINING).between(0, 0.05, inclusive="neither").all()


@cache
def explained(speed: str, reason: str) -> tuple[float, float, float]:
    """Rank correlation of a reason with the surprises of a speed, and its interval."""
    surprise = atlas().surprise(atlas().found, speed)
    reasons = atlas().found.loc[surprise.index, reason]
    return agreement(reasons.to_numpy(), surprise.to_numpy())


def two_reasons_exclude_zero():
    held_out = set(atlas().atlas.SPEEDS) - {TRAINING}
    tried = {(speed, reason) for speed in held_out for reason in atlas().reasons}
    outside = {which for which in tried if not contains_zero(explained(*which))}
    return len(tried) == 18 and outside == {(HELD_OUT, "along"), (FULL, "base accuracy")}


def largest_failures_are_none_on_training_statements():
    held_out, training = (atlas().surprise(atlas().found, x) for x in (HELD_OUT, TRAINING))
    largest = held_out.abs().sort_values().index[-5:]
    return (training[largest].abs() < 5).all()


# Chapter 11: the audit


def audit() -> SimpleNamespace:
    return cells.executed("11_audit_your_data")


def speed_is_the_best_order():
    for growth in ("first step", "last layer"):
        rho = {name: interval(cell)[0] for name, cell in audit().order[growth].items()}
        best = rho.pop("speed, in the mixture")
        if not (best > 0.85 and best > max(rho.values()) + 0.2):
            return False
    return True


def base_model_predicts_nothing():
    names = ("base gap", "already right")
    orders = [audit().order[growth] for growth in audit().measured]
    return all(contains_zero(interval(order[name])) for order in orders for name in names)


def first_three_for_all_parameters() -> list[list[float]]:
    """Rank correlations and intervals of speed in the mixture, speed alone, and coherence."""
    return [interval(cell) for cell in audit().order["all parameters"].values()][:3]


def order_of_all_parameters_is_predicted_less_well():
    return all(0 < low < mean < 0.75 for mean, low, _ in first_three_for_all_parameters())


def sixteen_behaviors_do_not_tell_predictors_apart():
    means = [mean for mean, *_ in first_three_for_all_parameters()]
    return len(audit().mixture) == 16 and np.ptp(means) < 0.1


def right_within_mixtures(growth: str) -> list[float]:
    """The share of the 24 pairs of behaviors in the right order, by predictor."""
    counts = [cell.split() for cell in audit().within[growth].values()]
    assert {total for *_, total in counts} == {"24"}
    return [int(right) / 24 for right, *_ in counts]


def three_in_four_within_mixtures():
    for growth in ("first step", "last layer"):
        in_mixture, alone, *_ = right_within_mixtures(growth)
        if not 0.7 < in_mixture == alone < 0.8:
            return False
    return True


def nine_in_ten_flipped_pairs_are_found():
    area = audit().wrong_labels["AUC"]
    return area.min() > 0.8 and (area > 0.9).sum() == 3


def two_speeds_are_below_two_errors():
    groups = audit().groups
    below = groups["speed"] < 2 * groups["its error"]
    return (groups["speed"] > 0).all() and below.sum() == 2


def gap_of_longer_chosen_has_decreased():
    grown = audit().groups["grown"] / audit().groups["± grown"]
    return grown["chosen is shorter"] > 3 and grown["chosen is longer"] < -3


def both_responses_became_less_likely():
    before, after = (each.mean(0) for each in aligning())
    return (after < before).all()


def lengths_and_base_gap_predict_more():
    length = interval(audit().by_pair["tokens, chosen less rejected"])[0]
    return length < -0.8 and interval(audit().by_pair["base gap"])[0] > 0.8


def speed_of_a_pair_predicts_little():
    mean, low, _ = interval(audit().by_pair["speed"])
    return 0 < low < mean < 0.4


# Chapter 12: a remedy


@cache
def ends(letter: str) -> tuple[int, int]:
    """The behaviors of a mixture with the shortest and the longest difference of means."""
    behaviors = remedy.mixture_behaviors(records().config)[letter]
    length = np.linalg.norm(priorities.differences(records(), behaviors), axis=1)
    return int(length.argmin()), int(length.argmax())


def changed(letter: str, before: np.ndarray, after: np.ndarray) -> SimpleNamespace:
    """What an arm changes of losses (m, T + 1, seeds), medians over the seeds, as its table has."""
    gap = np.ptp(after, axis=0).mean(0) / np.ptp(before, axis=0).mean(0)
    difference = (after - before).mean(1)
    short, long = (np.median(difference[end]) for end in ends(letter))
    return SimpleNamespace(
        letter=letter, gap=np.median(gap), short=short, long=long, all=np.median(difference.mean(0))
    )


@cache
def changes_of_last_layer() -> list[SimpleNamespace]:
    """What each arm changes in each mixture, on training and on held-out statements."""
    found = []
    for letter in remedy.mixture_behaviors(records().config):
        for part in (0, 1):
            plain, *others = remedy.head(records(), letter, part).values()
            found += [changed(letter, plain, losses) for losses in others]
    return found


def long_loses_more_than_short_gains():
    return all(x.short < 0 < -x.short < x.long for x in changes_of_last_layer())


def weights_hardly_move():
    mixed = remedy.mixture_behaviors(records().config).values()
    weights = [remedy.head_run(records(), behaviors).arrays["weights"] for behaviors in mixed]
    return all(np.ptp(w, axis=0).max() < 0.01 for w in weights)


def solving_again_is_better_in_one_mixture():
    better = 0
    for letter in remedy.mixture_behaviors(records().config):
        arms = remedy.head(records(), letter)
        once, again = (np.ptp(arms[remedy.ARMS[i]], axis=0).mean() for i in (1, 3))
        better += again < once
    return better == 1


@cache
def changes_of_all_parameters() -> list[SimpleNamespace]:
    """What resampling changes of the held-out losses, for each pair and rate."""
    runs = remedy.everything(records())
    return [changed(letter, *arms.values()) for (letter, _), arms in runs.items()]


def last_layer_of(letter: str) -> list[SimpleNamespace]:
    """``changes_of_last_layer`` of one mixture."""
    return [x for x in changes_of_last_layer() if x.letter == letter]


def all_parameters_of(letter: str) -> list[SimpleNamespace]:
    """``changes_of_all_parameters`` of one pair."""
    return [x for x in changes_of_all_parameters() if x.letter == letter]


def fast_behavior_is_slowed_down():
    return all(x.long > max(-x.short, 0) for x in changes_of_all_parameters())


def long_behavior_falls_behind():
    lowest, highest = ends("(b)")
    after = [
        arms[remedy.ARMS[2]][:, 1:, 0]
        for (letter, _), arms in remedy.everything(records()).items()
        if letter == "(b)"
    ]
    return all((losses[highest] > losses[lowest]).mean() > 0.8 for losses in after)


# The table: page, sentence, and whether the recorded runs show it

CLAIMS: dict[str, dict[str, Callable]] = {
    "05_full_finetuning": {
        "number 2 in the paper's order, which under this model is only "
        "the third most distinguishable": second_behavior_is_third_most_distinguishable,
        "it is learned before all others, including those that are "
        "further apart before training": second_behavior_is_first_with_every_seed,
        "The bands show that this does not depend "
        "on the seed.": second_behavior_is_first_with_every_seed,
        "number 5 overtakes it before the epoch ends": fifth_behavior_overtakes_the_second,
    },
    "07_misalignment": {
        "The lead is positive for all five behaviors, at both "
        "learning rates, with every seed": every_lead_is_positive,
        "the lead is by far the smallest for the "
        "least distinguishable behavior": least_distinguishable_has_the_smallest_lead,
        "reaches three quarters of flipped held-out answers only a few steps later "
        "in the median": aligned_models_are_flipped_a_few_steps_later,
        "In some runs it gets there sooner.": some_aligned_models_are_flipped_sooner,
        "In one run, of the least distinguishable behavior, it does "
        "not get there within the epoch.": one_run_is_never_flipped,
        "The classes do not return to where they were in the base model.": classes_stay_apart,
        "Their distance shrinks, since two means that change sides "
        "have to pass each other": distance_of_classes_shrinks,
        "the gap changes more in the run from the aligned model than in the run from the base "
        "model, while the parameters move *less* far": gap_changes_more_and_parameters_less,
        "For all five the upper bound for the aligned model lies below the lower "
        "bound for the base model, at every step.": last_layer_is_proven_faster,
        "bring the mean gap of most behaviors below the base model's": lambda: (
            examples_that_undo()[-2] == 10
        ),
        "Thirty do so for every behavior.": lambda: examples_that_undo()[-1] == 30,
    },
    "08_hh_rlhf": {
        "The rule chose the largest of the rates that it compares.": rule_takes_the_largest_rate,
        "most of the lead in *training* loss remains "
        "with a new adapter.": most_of_the_lead_remains_with_a_new_adapter,
        "both leads are largest in the first third of the epoch.": held_out_lead_is_early,
        "By its end the base model has caught up with the trained adapter, "
        "and is ahead of the new one.": base_model_catches_up,
        "Alignment is not undone within the epoch, unless the base "
        "model is the reference": undone_only_with_the_base_reference,
        "both log-probabilities fall, by far more than "
        "the gap between them grows": both_fall_by_more_than_the_gap_grows,
        "the base model loses likelihood as well, while the aligned model "
        "regains part of it": base_loses_likelihood_and_aligned_regains_part,
        "It is within two standard errors of zero": lead_at_the_papers_rate_is_within_two_errors,
        "rounding changes a pair's gap about as much "
        "as aligning does": rounding_changes_gaps_as_much_as_aligning,
        "takes back, pair by pair, just what "
        "aligning had done": each_pair_loses_what_aligning_added,
    },
    "09_mistral": {
        "Two models that differ in maker, tokenizer, and size agree on which "
        "behaviors are distinguishable.": models_agree_on_distinguishability,
        "Noise does not explain the agreement.": lambda: agreement_of_models("clean")[1] > 0.8,
        "Length does not explain it either, since the two models do not agree "
        "on it at all.": lambda: contains_zero(agreement_of_models("length")),
        "One unit of learning rate moves this model's answers several times "
        "as far as the first model's.": one_unit_moves_the_second_model_further,
        "For the first model the gap grows almost in proportion "
        "to the rate.": first_model_grows_in_proportion,
        "For the second model it grows faster.": second_model_grows_faster,
        "At the paper's rate the order is perfect.": lambda: (
            order_learned("paper") == distinguishability_order()
        ),
        "At the scaled rate two neighbors swap places": two_neighbors_swap_places,
        "the second and the fourth in the paper's order, whose distinguishability in "
        "this model is nearly equal": swapped_neighbors_are_equally_distinguishable,
        "Here the fifth is learned first at both rates": lambda: (
            order_learned("paper")[-1] == order_learned("scaled")[-1] == 4
        ),
        "(a) has by far the larger priority gap.": first_pair_has_the_larger_priority_gap,
        "At the scaled rate the losses of (a) differ clearly more than those of (b).": lambda: (
            1.6 < ratio_of_differences("scaled") < 1.75
        ),
        "At the paper's rate the two differences are almost equal": lambda: (
            1 < ratio_of_differences("paper") < 1.05
        ),
        "which has the lower priority, has the lower loss at every "
        "step and at both rates": lower_priority_has_the_lower_loss,
        "The lead is positive for both behaviors at both rates, on training "
        "and on held-out pairs": lambda: (leads_of_second_model() > 0).all(),
        "the lead is much smaller for the behavior "
        "of low distinguishability": low_distinguishability_has_a_small_lead,
        "the run from the base model has the lower loss in "
        "every panel except one": base_ends_lower_on_all_last_batches_but_one,
        "it has the lower loss at the end in one panel only, the first behavior": lambda: (
            panels_where_base_ends_lower(1) == {(True, "scaled")}
        ),
        "The distance between the means grows several times, on "
        "held-out statements too.": distance_of_means_grows_several_times,
        "The variances grow faster than this distance, so $q_1$ increases": q1_increases,
        "The variances grow more slowly than the square of "
        "the distance, so $q_2$ decreases.": q2_decreases,
        "At the scaled rate $q_2$ falls below $v$ for both behaviors": lambda: all(
            q2_below_v("scaled")
        ),
        "At the paper's rate this holds for the more distinguishable behavior": lambda: q2_below_v(
            "paper"
        )[1],
    },
    "10_atlas": {
        "One of the behaviors drawn has half as many statements as the others, and so "
        "half as many steps in its epoch.": one_drawn_behavior_has_half_as_many_steps,
        "the certificate order the speeds of the last "
        "layer almost perfectly": last_layer_is_ordered_almost_perfectly,
        "How the base model answers says little about how "
        "fast the last layer will learn.": base_model_says_little,
        "No predictor stands out: the probe's margin, the certificate": no_predictor_stands_out,
        "is positive, and so is its interval, but it is lower than for the last layer of "
        "the same behaviors": correlation_is_positive_but_lower_than_for_the_last_layer,
        "After the first half this page said that $\\|\\hat b\\|$ predicts "
        "their order well.": lambda: correlation_in_half(slice(10)) > 0.9,
        "The second half alone would not support this.": lambda: (
            correlation_in_half(slice(10, None)) < 0.5
        ),
        "The intervals are wide, and show how little ten or "
        "twenty behaviors can settle.": intervals_are_wide,
        "both scores of the probe have higher correlations over "
        "the whole epoch": probes_correlate_more_over_the_epoch,
        "The correlation of $\\|\\hat b\\|$ hardly changes.": distinguishability_hardly_changes,
        "the probe's margin has the highest correlation "
        "over the whole epoch.": probe_margin_is_highest_over_the_epoch,
        "Over the first half, its correlation is only a little "
        "higher than the correlations of": probe_margin_is_a_little_higher_over_the_first_half,
        "the probe and the base model's answers are worse predictors "
        "than $\\|\\hat b\\|$": lambda: worse_than_distinguishability((*PROBES, *BASE_ANSWERS)),
        "For all parameters every interval contains zero, over "
        "the whole epoch too": no_advantage_for_all_parameters,
        "More than nine pairs in ten are decided.": nine_pairs_in_ten_are_decided,
        "nearly all were measured in the proven order on the training "
        "statements, more than nine in ten on held-out statements, "
        "and more than three in four": most_decided_pairs_are_as_proven,
        "gives the right order in nearly as "
        "large a share": distinguishability_orders_nearly_as_many,
        "Of the eighteen intervals for held-out speeds, two exclude zero: the cosine of $\\hat b$ "
        "and the common mean for the last layer over all behaviors": two_reasons_exclude_zero,
        "On the statements it is trained on, the last layer's speed is predicted "
        "almost without error.": speed_on_training_statements_is_predicted,
        "Where the prediction fails, the hundred held-out statements are easier or harder "
        "than the training statements.": largest_failures_are_none_on_training_statements,
        "behaviors are learned faster than predicted if the base model already "
        "answers them well": lambda: explained(FULL, "base accuracy")[1] > 0,
        "It orders the speeds as well as the certificate does, and better than a probe or the "
        "base model's answers do.": last_layer_as_well_as_certificate_and_better_than_others,
        "Over the whole epoch the probe's margin had the highest correlation, "
        "but not beyond chance.": probe_margin_is_highest_but_not_beyond_chance,
    },
    "11_audit_your_data": {
        "The predicted speed orders what the last layer learns, after one step and after all "
        "steps, better than the quantities that are easier to compute.": speed_is_the_best_order,
        "The base model's answers predict nothing that is "
        "distinguishable from chance.": base_model_predicts_nothing,
        "For all parameters the audit predicts the order too, "
        "but less well": order_of_all_parameters_is_predicted_less_well,
        "sixteen behaviors cannot tell these apart": sixteen_behaviors_do_not_tell_predictors_apart,
        "For the last layer, the audit orders about three in four pairs within a mixture "
        "correctly, and the speed of a behavior alone does as well.": three_in_four_within_mixtures,
        "For full fine-tuning, the audit's order is little better than a guess.": lambda: (
            0.5 < right_within_mixtures("all parameters")[0] < 0.65
        ),
        "the audit identifies the flipped one about "
        "nine times in ten": nine_in_ten_flipped_pairs_are_found,
        "Of the pairs with the lowest scores, more than half were flipped.": lambda: (
            audit().wrong_labels["of the worst"].min() > 0.5
        ),
        "With the shared part kept, it does so two times in three.": lambda: (
            audit().wrong_labels["AUC, shared part kept"].between(0.6, 0.7).all()
        ),
        "many pairs go against their group without any flipped label": lambda: (
            audit().wrong_labels["against before"].between(0.1, 0.25).all()
        ),
        "It predicts that all three kinds gain, although two of the speeds "
        "are below two standard errors.": two_speeds_are_below_two_errors,
        "the gap of the dialogues whose chosen response is longer "
        "has decreased": gap_of_longer_chosen_has_decreased,
        "In that run both responses of a pair "
        "became less likely": both_responses_became_less_likely,
        "So the difference in length, or the base model's gap, predicts "
        "far better than the gradient does": lengths_and_base_gap_predict_more,
        "The speed of a pair predicts something, but little": speed_of_a_pair_predicts_little,
    },
    "12_remedy": {
        "Over the whole run the gap is a few hundredths of what it was, on the training "
        "statements and on the held-out statements": lambda: all(
            x.gap < 0.05 for x in changes_of_last_layer()
        ),
        "In every mixture the behavior with the longest $b$ is slowed down by more than "
        "the behavior with the shortest is sped up": long_loses_more_than_short_gains,
        "the mean loss of all is higher than before": lambda: all(
            x.all > 0 for x in changes_of_last_layer()
        ),
        "The effect is small in pair (a), whose vectors differ little in length.": lambda: all(
            x.long < -2 * x.short for x in last_layer_of("(a)")
        ),
        "the long one loses more than five times what the short one gains": lambda: all(
            x.long > -5 * x.short for x in last_layer_of("(b)")
        ),
        "The weights hardly move: priorities hardly change "
        "while the loss decreases this far.": weights_hardly_move,
        "better than weights computed once in only "
        "one of the three mixtures": solving_again_is_better_in_one_mixture,
        "In pair (a) the gap decreases to between a half and three quarters of "
        "what it was": lambda: all(0.5 < x.gap < 0.75 for x in all_parameters_of("(a)")),
        "the behavior with the longest $b$ learns more slowly, and the other "
        "one no faster": lambda: all(x.short > 0 for x in all_parameters_of("(a)")),
        "Now the long behavior falls behind, at both learning rates": long_behavior_falls_behind,
        "and the gap is wider than before": lambda: all(
            x.gap > 1 for x in all_parameters_of("(b)")
        ),
        "The short behavior gains less than a tenth of what the long one loses.": lambda: all(
            0 < -x.short < x.long / 10 for x in all_parameters_of("(b)")
        ),
        "The fast behavior is slowed down, and the slow one "
        "gains little or nothing.": fast_behavior_is_slowed_down,
    },
}
ROWS = [(page, *claim) for page, claims in CLAIMS.items() for claim in claims.items()]


@cache
def text(page: str) -> str:
    """The text of ``notebooks/PAGE.py`` or ``book/PAGE.md``, in one line."""
    if not (ROOT / "notebooks" / f"{page}.py").exists():
        return " ".join((ROOT / "book" / f"{page}.md").read_text("utf-8").split())
    prose = [cell.source for cell in notebook.source(page).cells if cell.cell_type == "markdown"]
    return " ".join(" ".join(prose).split())


@pytest.mark.parametrize(
    ("page", "sentence", "holds"), ROWS, ids=[f"{page}: {sentence}" for page, sentence, _ in ROWS]
)
def test_the_recorded_runs_show(page, sentence, holds):
    assert sentence in text(page), f"{page} no longer says “{sentence}”"
    assert holds(), f"{page} says “{sentence}”, which the recorded runs do not show"
