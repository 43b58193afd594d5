"""Benchmarks of `make bench`: ours and an alternative take turns; medians of several rounds."""
