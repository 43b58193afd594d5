"""What the tests share."""

import os
from pathlib import Path

import pytest
import torch

from ledger.store import ROOT

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@pytest.fixture
def root() -> Path:
    """The top of the project."""
    return ROOT


@pytest.fixture(scope="module")
def one_thread():
    """Many tiny operations: threads would wait for each other, the more so beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
