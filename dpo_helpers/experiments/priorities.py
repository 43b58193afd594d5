"""Runs and measures of the chapter on priorities (eq. 5, Figure 5)."""

RUNS = ()
MEASURES = ()
