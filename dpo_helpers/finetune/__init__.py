"""DPO of all parameters: settings, the training loop, checkpoints, memory."""

from .policy import PRECISIONS, Policy, compute_precision, network_sha256
from .trainer import Curves, Settings, batches, reference_log_ratios, restore, train

__all__ = [
    "PRECISIONS",
    "Curves",
    "Policy",
    "Settings",
    "batches",
    "compute_precision",
    "network_sha256",
    "reference_log_ratios",
    "restore",
    "train",
]
