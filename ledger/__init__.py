"""What the book records: configurations, the keys of runs, and the runs themselves."""
