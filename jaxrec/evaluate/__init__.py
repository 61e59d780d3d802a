"""Evaluation: recommends lists, ranks all items or sampled ones, compares reports, and audits a
split.
"""

from jaxrec.evaluate.audit import Audit as Audit
from jaxrec.evaluate.audit import audit as audit
from jaxrec.evaluate.ranking import full_ranking as full_ranking
from jaxrec.evaluate.ranking import scorer as scorer
from jaxrec.evaluate.ranking import top_k as top_k
from jaxrec.evaluate.report import Comparison as Comparison
from jaxrec.evaluate.report import Report as Report
from jaxrec.evaluate.sampled import sampled_ranking as sampled_ranking
