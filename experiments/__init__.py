"""The experiments of the chapters, a module each: its runs, and what claims measure in them."""

from collections.abc import Callable

import numpy as np

from dpo_helpers.errors import unknown
from dpo_helpers.lm import prepare
from ledger.config import configure
from ledger.store import Run, RunStore

from . import (
    atlas,
    audit_your_data,
    case_study,
    distributional_changes,
    full_finetuning,
    hh_rlhf,
    learning_guarantees,
    misalignment,
    objectives,
    priorities,
    rate_of_change,
    remedy,
    second_llm,
)
from .shared import all_behaviors

_MODULES = {
    "00_setup": objectives,
    "01_case_study": case_study,
    "02_rate_of_change": rate_of_change,
    "03_priorities": priorities,
    "04_learning_guarantees": learning_guarantees,
    "05_full_finetuning": full_finetuning,
    "06_distributional_changes": distributional_changes,
    "07_misalignment": misalignment,
    "08_hh_rlhf": hh_rlhf,
    "09_mistral": second_llm,
    "10_atlas": atlas,
    "11_audit_your_data": audit_your_data,
    "12_remedy": remedy,
}
# What the workflow records before a chapter is executed.
CHAPTERS: dict[str, tuple[Callable[[RunStore], Run], ...]] = {
    chapter: module.RUNS for chapter, module in _MODULES.items()
}
# What a claim is judged by: each a function of the records and a run's name; one value a seed.
MEASURES: dict[str, Callable[[RunStore, str], np.ndarray]] = {
    measure.__name__: measure for module in _MODULES.values() for measure in module.MEASURES
}

# What a sweep shows of a chapter: curves by name, (T + 1,) each, NaN where nothing was measured.
SWEPT: dict[str, Callable[[RunStore], dict[str, np.ndarray]]] = {
    chapter: module.swept for chapter, module in _MODULES.items() if hasattr(module, "swept")
}


def record_hidden_states(records: RunStore) -> None:
    """Record the hidden states of all behaviors of the tier's chapters."""
    for behavior in all_behaviors(records.config):
        records.states(behavior)


def record(tier: str, what: str) -> None:
    """Record a tier's ``model``, its ``hidden`` states, or a chapter's runs, as the tier says."""
    records = RunStore(configure({"tier": tier}))
    if what == "model":
        prepare(records.config.model)
    elif what == "hidden":
        record_hidden_states(records)
    elif what not in CHAPTERS:
        raise unknown("chapter", what, CHAPTERS)
    else:
        for run in CHAPTERS[what]:
            run(records)
