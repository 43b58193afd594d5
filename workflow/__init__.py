"""Commands of the Snakefile and the Makefile: execute notebooks, run sweeps, render the book."""
