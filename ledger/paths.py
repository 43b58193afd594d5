"""Where ``results/``, ``notebooks/`` and ``claims.yml`` are."""

import os
from pathlib import Path

# The folder beside which the package stands, or what $DPO_ROOT says.
ROOT = Path(os.environ.get("DPO_ROOT") or Path(__file__).resolve().parents[1])
