"""Runs and measures of the chapter on learning guarantees (Theorems 4.2 and 4.3)."""

RUNS = ()
MEASURES = ()
