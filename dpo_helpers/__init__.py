"""Helpers for the executable book on the learning dynamics of DPO.

The modules are read in the order of the chapters; each imports only what
stands before it: errors, config, data, models, tree, hidden, geometry, dpo,
last_layer, runs, claims, plots.
"""

__version__ = "0.2.0"
