"""Record: python -m experiments TIER model|hidden|CHAPTER."""

import sys

from dpo_helpers.errors import InputError

from . import record

if __name__ == "__main__":
    try:
        record(*sys.argv[1:])
    except InputError as problem:
        sys.exit(f"error: {problem}")
