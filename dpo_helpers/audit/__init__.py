"""What DPO will do first with a preference data set: its gradient at initialization, by groups."""

from .audit import MIN_STRATUM, TERMS, Audit, audit, cosines, main, report, table
from .pairs import tokenize
