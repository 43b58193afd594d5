"""One kind of error for everything a reader can put right."""

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """Bad input or a missing thing, told in one line: what, where, and the remedy.

    In a notebook the line stands alone, without a traceback.
    """

    def _render_traceback_(self) -> list[str]:
        return [f"InputError: {self}"]


def unknown(what: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not among ``known``, with the nearest ones suggested."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known[:12])}"
    return InputError(f"unknown {what} {name!r}; {hint}")
