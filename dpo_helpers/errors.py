"""One kind of error for everything that a reader can put right."""

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """Bad input or a missing resource, in one line: what, where, and the remedy.

    A notebook shows the line alone, without a traceback.
    """

    def _render_traceback_(self) -> list[str]:
        return [f"InputError: {self}"]


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def excerpt(value: object) -> str:
    """At most 80 characters of a value's ``repr``, for a message."""
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not among ``known``, with similar names."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known[:12])}"
    hint = hint if known else "there is none"
    return InputError(f"unknown {kind} {name!r}; {hint}")
