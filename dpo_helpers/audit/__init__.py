"""What DPO will do first with a preference data set: its gradient at initialization, by groups."""

from .gradient import MIN_STRATUM, audit
from .pairs import tokenize
from .report import report
from .summary import TERMS, Audit, cosines, table
