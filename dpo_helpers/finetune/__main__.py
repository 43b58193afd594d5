"""python -m dpo_helpers.finetune --help"""

import sys

from ..errors import InputError
from .trainer import main

if __name__ == "__main__":
    try:
        main()
    except InputError as problem:
        sys.exit(f"error: {problem}")
