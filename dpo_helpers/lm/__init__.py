"""Language models: loading them, their adapters, and the log-ratios of their responses."""

from ..files import file_sha256
from .cards import CARDS, Card
from .convert import cache_dir, converted
from .models import Model, load, resolve_device, response_token
from .responses import (
    CHUNK,
    Pairs,
    log_probabilities,
    log_ratio_terms,
    log_ratios,
    pairs_from_behaviors,
    pairs_from_text,
)
from .tiny import tiny
from .weights import describe, prepare, weights_sha256, whereabouts
