"""python -m dpo_helpers.audit --help"""

import sys

from ..errors import InputError
from .audit import main

if __name__ == "__main__":
    try:
        main()
    except InputError as problem:
        sys.exit(f"error: {problem}")
