"""Language models: loading them, their adapters, and the log-ratios of their responses."""

from .models import (
    CARDS,
    Card,
    Model,
    cache_dir,
    converted,
    describe,
    file_sha256,
    load,
    prepare,
    resolve_device,
    response_token,
    weights_sha256,
    whereabouts,
)
from .responses import (
    CHUNK,
    Pairs,
    log_probabilities,
    log_ratio_terms,
    log_ratios,
    pairs_from_behaviors,
    pairs_from_text,
)

__all__ = [
    "CARDS",
    "CHUNK",
    "Card",
    "Model",
    "Pairs",
    "cache_dir",
    "converted",
    "describe",
    "file_sha256",
    "load",
    "log_probabilities",
    "log_ratio_terms",
    "log_ratios",
    "pairs_from_behaviors",
    "pairs_from_text",
    "prepare",
    "resolve_device",
    "response_token",
    "weights_sha256",
    "whereabouts",
]
