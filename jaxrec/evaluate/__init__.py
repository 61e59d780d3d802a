"""Evaluation: recommendations, full and sampled ranking, reports, comparisons, and audits of splits."""

from jaxrec.evaluate.audit import Audit as Audit
from jaxrec.evaluate.audit import audit as audit
from jaxrec.evaluate.compare import benjamini_hochberg as benjamini_hochberg
from jaxrec.evaluate.compare import compare_all as compare_all
from jaxrec.evaluate.compare import holm as holm
from jaxrec.evaluate.ranking import full_ranking as full_ranking
from jaxrec.evaluate.ranking import scorer as scorer
from jaxrec.evaluate.ranking import top_k as top_k
from jaxrec.evaluate.recommend import recommend as recommend
from jaxrec.evaluate.recommend import similar as similar
from jaxrec.evaluate.report import Comparison as Comparison
from jaxrec.evaluate.report import Exposure as Exposure
from jaxrec.evaluate.report import Report as Report
from jaxrec.evaluate.sampled import sampled_ranking as sampled_ranking
