"""Where numbers come from, in words: machine, model, data, commit, date."""

import datetime
import platform
import subprocess
from collections.abc import Sequence

from dpo_helpers import data, lm
from dpo_helpers.errors import InputError

from .config import Config
from .keys import PACKAGES
from .paths import ROOT
from .record import Run


def header(config: Config, kind: str = "persona") -> str:
    """The machine, the model and the data of a ``kind``, in Markdown: the top of a page.

    For "persona" it lists the behaviors. If the data is unavailable, recorded runs are replayed.
    """
    import torch

    try:
        where, here = data.source(config.data, kind), data.at_hand(config.data, kind)
    except InputError as problem:
        where, here = str(problem), False
    rows = {
        "tier": config.tier,
        "machine": f"{device(config.device)}, Python {platform.python_version()}, "
        f"torch {torch.__version__.split('+')[0]}",
        "model": f"{lm.describe(config.model)} {lm.whereabouts(config.model)}",
        "data": where + ("" if here else "; not here, recorded runs are replayed"),
    }
    if kind == "persona":
        rows["behaviors"] = ", ".join(config.behaviors)
    return "\n".join(f"- **{name}:** {value}" for name, value in rows.items())


def line(runs: Sequence[Run], config: Config) -> str:
    """One line of Markdown: where the numbers shown so far come from."""

    def every(key: str) -> str:
        return ", ".join(sorted({str(run.info[key]) for run in runs}))

    keys = [run.info["key"] for run in runs]
    names = {key["settings"].get("model", config.model) for key in keys}
    sets = sorted({"HH-RLHF" if "HH-RLHF" in key["inputs"] else "Persona" for key in keys})
    parts = [
        f"{len(runs)} recorded runs",
        f"commit {every('commit')}",
        f"model {', '.join(sorted(names))}",
        f"data: {'embedded sample' if config.data == 'sample' else ', '.join(sets)}",
        every("device"),
        every("date"),
        f"{sum(run.info['wall_seconds'] for run in runs):.0f} s",
    ]
    stale = [f"{run.name}: {run.stale}" for run in runs if run.stale]
    if stale:
        parts.append("**stale**: " + "; ".join(stale))
    return "*Provenance:* " + " · ".join(parts)


def device(device: str) -> str:
    import torch

    kind = lm.resolve_device(device)
    if kind.startswith("cuda"):
        return torch.cuda.get_device_name(kind)
    return f"{kind.upper()}, {torch.get_num_threads()} threads"


def commit_and_date() -> dict[str, str]:
    """Commit (``+`` where the code had changed since), and date."""

    def git(*arguments: str) -> str:
        try:
            command = ["git", "-C", str(ROOT), *arguments]
            return subprocess.run(command, capture_output=True, text=True).stdout.strip()
        except OSError:  # no git here
            return ""

    changed = git("status", "--porcelain", "--", *PACKAGES, "notebooks/*.py")
    commit = git("rev-parse", "--short=10", "HEAD") or "unknown"
    return {
        "commit": commit + "+" * bool(changed),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }
