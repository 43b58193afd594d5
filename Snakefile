# model -> hidden states -> recorded runs -> executed notebooks -> book, for one tier:
#
#   python -m workflow.progress --config tier=smoke      (make run)
#   python -m workflow.progress --config tier=book       (make book)
#
# This is snakemake with one line per step. The output of a step is in build/TIER/log.
# The stamps under build/ are for Snakemake, which compares times. What is true of a recorded
# run is its key: a job asks for it, and replays the record where it matches. So a fresh clone,
# whose times mean nothing, redoes no run that is recorded. Notebooks and pages are no outputs of
# a rule, since Snakemake removes those of a job that fails: they are replaced when it succeeds.
import os
from pathlib import Path

from experiments import CHAPTERS
from ledger.keys import PACKAGES

TIER = config.get("tier", "smoke")
BUILD = f"build/{TIER}"
# The book tier's notebooks are stored beside their sources.
EXECUTED = "notebooks" if TIER == "book" else f"{BUILD}/notebooks"
SAMPLE = sorted(map(str, Path("dpo_helpers/data/sample").rglob("*.jsonl")))
FOLDER = os.environ.get("DPO_DATA_DIR")
DATA = sorted(map(str, Path(FOLDER).rglob("*.jsonl*"))) if FOLDER and TIER != "smoke" else SAMPLE


# Every step depends on all code. After an edit it asks the keys of its runs again, and replays
# those that the edit does not concern, which is cheap.
CODE = sorted(str(path) for name in PACKAGES for path in Path(name).rglob("*.py"))


rule book:
    input:
        expand(f"{BUILD}/executed/{{chapter}}.done", chapter=CHAPTERS),
        sorted(map(str, Path("book").rglob("*.*"))),
        "_config.yml",
        "_toc.yml",
        "workflow/book.py",
        "workflow/notebook.py",
        [f"{BUILD}/scorecard.done"] if TIER == "book" else [],
    output:
        touch(f"{BUILD}/book.done"),
    log:
        f"{BUILD}/log/book.log",
    shell:
        "python -m workflow.book {TIER} > {log} 2>&1"


localrules:
    model,


rule model:
    input:
        CODE,
    output:
        touch(f"{BUILD}/model.done"),
    log:
        f"{BUILD}/log/model.log",
    shell:
        "python -m experiments {TIER} model > {log} 2>&1"


rule hidden_states:
    input:
        f"{BUILD}/model.done",
        CODE,
        DATA,
    output:
        touch(f"{BUILD}/hidden.done"),
    threads: 2
    log:
        f"{BUILD}/log/hidden_states.log",
    shell:
        "python -m experiments {TIER} hidden > {log} 2>&1"


# Chapters that look at runs of another: what is trained there is not to be trained twice at once.
AFTER = dict.fromkeys(
    ("06_distributional_changes", "07_misalignment", "09_mistral", "10_atlas", "12_remedy"),
    f"{BUILD}/runs/05_full_finetuning.done",
)
AFTER["11_audit_your_data"] = [
    f"{BUILD}/runs/{chapter}.done" for chapter in ("05_full_finetuning", "08_hh_rlhf")
]
# Half of the chapters wait for the first of these, and the book for the second.
LONG = ("05_full_finetuning", "07_misalignment")


rule runs:
    input:
        f"{BUILD}/hidden.done",
        CODE,
        lambda wildcards: AFTER.get(wildcards.chapter, []),
    output:
        touch(f"{BUILD}/runs/{{chapter}}.done"),
    threads: lambda wildcards: 2 if wildcards.chapter in LONG else 1
    log:
        f"{BUILD}/log/{{chapter}}-runs.log",
    shell:
        "python -m experiments {TIER} {wildcards.chapter} > {log} 2>&1"


rule scorecard:
    input:
        expand(f"{BUILD}/runs/{{chapter}}.done", chapter=CHAPTERS),
        CODE,
        "claims.yml",
    output:
        touch(f"{BUILD}/scorecard.done"),
    log:
        f"{BUILD}/log/scorecard.log",
    shell:
        "(python -m workflow.claims && python -m workflow.front) > {log} 2>&1"


rule notebook:
    input:
        f"{BUILD}/runs/{{chapter}}.done",
        "notebooks/{chapter}.py",
        CODE,
        "claims.yml",
        "workflow/notebook.py",
        "workflow/pairs.py",
    output:
        touch(f"{BUILD}/executed/{{chapter}}.done"),
    log:
        f"{BUILD}/log/{{chapter}}-notebook.log",
    shell:
        "python -m workflow.notebook {wildcards.chapter} {TIER}"
        " {EXECUTED}/{wildcards.chapter}.ipynb > {log} 2>&1"
