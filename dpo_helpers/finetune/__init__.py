"""DPO of all parameters: settings, the training loop, checkpoints, memory."""

from .checkpoint import restore
from .log import Curves
from .policy import Policy, compute_precision, network_sha256
from .reference import reference_log_ratios
from .settings import PRECISIONS, Settings, batches
from .trainer import train
