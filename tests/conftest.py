"""What the tests share."""

import os
from pathlib import Path

import pytest

from dpo_helpers.runs import ROOT

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@pytest.fixture
def root() -> Path:
    """The top of the project."""
    return ROOT
