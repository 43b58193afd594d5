"""What the Snakefile calls: executing a notebook, and rendering the book."""
