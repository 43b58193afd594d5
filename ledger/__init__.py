"""What the book records: configurations, the keys of runs, the runs themselves, where they come from."""
