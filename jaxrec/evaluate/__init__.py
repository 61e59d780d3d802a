"""Evaluation: recommendation lists, full and sampled ranking, reports, and audits of splits."""

from jaxrec.evaluate.audit import Audit as Audit
from jaxrec.evaluate.audit import audit as audit
from jaxrec.evaluate.ranking import full_ranking as full_ranking
from jaxrec.evaluate.ranking import scorer as scorer
from jaxrec.evaluate.ranking import top_k as top_k
from jaxrec.evaluate.report import Comparison as Comparison
from jaxrec.evaluate.report import Report as Report
from jaxrec.evaluate.sampled import sampled_ranking as sampled_ranking
