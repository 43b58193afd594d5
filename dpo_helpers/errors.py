"""One kind of error for everything a reader can put right."""

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """Bad input or a missing thing, told in one line: what, where, and the remedy.

    In a notebook the line stands alone, without a traceback.
    """

    def _render_traceback_(self) -> list[str]:
        return [f"InputError: {self}"]


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def unknown(what: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not among ``known``, with the nearest ones suggested."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known[:12])}"
    hint = hint if known else "there is none"
    return InputError(f"unknown {what} {name!r}; {hint}")
