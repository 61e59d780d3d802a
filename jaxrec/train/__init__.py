"""Training: `init` a state, `fit` it to interactions under an objective and an optax transformation."""

from jaxrec.history import EarlyStopping as EarlyStopping
from jaxrec.history import History as History
from jaxrec.train import mars as mars
from jaxrec.train.checkpoint import Checkpoint as Checkpoint
from jaxrec.train.lanes import Sweep as Sweep
from jaxrec.train.loop import Batch as Batch
from jaxrec.train.loop import DivergenceError as DivergenceError
from jaxrec.train.loop import State as State
from jaxrec.train.loop import fit as fit
from jaxrec.train.loop import init as init
from jaxrec.train.metric import covariance_objective as covariance_objective
from jaxrec.train.metric import relation_objective as relation_objective
from jaxrec.train.metric import sml_objective as sml_objective
from jaxrec.train.objectives import combined_objective as combined_objective
from jaxrec.train.objectives import gram_objective as gram_objective
from jaxrec.train.objectives import in_batch_objective as in_batch_objective
from jaxrec.train.objectives import log_q as log_q
from jaxrec.train.objectives import pairwise_objective as pairwise_objective
from jaxrec.train.objectives import pairwise_rows as pairwise_rows
from jaxrec.train.objectives import positives_objective as positives_objective
from jaxrec.train.objectives import rows_objective as rows_objective
from jaxrec.train.objectives import vectors_objective as vectors_objective
from jaxrec.train.sweep import DivergenceWarning as DivergenceWarning
from jaxrec.train.sweep import Recipe as Recipe
from jaxrec.train.sweep import grid as grid
from jaxrec.train.sweep import sweep as sweep
