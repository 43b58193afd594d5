"""Helpers for the executable book on the learning dynamics of DPO: one module an idea.

``experiments`` has a module a chapter, which says what is run there.
"""
