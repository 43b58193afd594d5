"""What `make bench` runs: our way beside another, interleaved, medians of several rounds."""
