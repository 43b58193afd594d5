"""Runs and measures of the chapter on the rate of change (Theorem 4.1, Figure 4)."""

RUNS = ()
MEASURES = ()
