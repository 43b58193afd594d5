"""The library of the executable book on the learning dynamics of DPO."""
