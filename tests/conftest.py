"""What the tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ledger.store import ROOT

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@pytest.fixture
def root() -> Path:
    """The top of the project."""
    return ROOT


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The cache of one test, not there yet: models are converted into it."""
    monkeypatch.setenv("DPO_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Path]:
    """A folder that the tests of one module share, with their cache in it."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPO_CACHE_DIR", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def one_thread():
    """Many tiny operations: threads would wait for each other, the more so beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
