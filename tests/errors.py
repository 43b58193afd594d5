"""What the tests of errors share: an error is one line, and a disk can be full."""

import contextlib
import resource
from collections.abc import Callable, Iterator

import pytest

from dpo_helpers.errors import InputError


def line(action: Callable[[], object], *parts: str) -> str:
    """The one line that ``action`` fails with; every one of ``parts`` is in it."""
    with pytest.raises(InputError) as caught:
        action()
    text = str(caught.value)
    assert text and "\n" not in text and len(text) < 1000, text
    for part in parts:
        assert part in text, f"{part!r} is not in {text!r}"
    return text


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file can grow beyond ``size`` bytes: a write fails as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
