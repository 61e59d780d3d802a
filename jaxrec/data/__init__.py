"""From files and tables to `Interactions`, on to train, valid and test, and what to know of them first."""

from jaxrec.data import datasets, readers, splits, synthetic
from jaxrec.data.audit import Audit, audit

__all__ = ["Audit", "audit", "datasets", "readers", "splits", "synthetic"]
