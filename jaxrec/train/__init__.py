"""Training: `init` creates a state, and `fit` trains it on interactions with an objective and an
optax transformation.
"""

from jaxrec._log import DivergenceError as DivergenceError
from jaxrec._log import EarlyStopping as EarlyStopping
from jaxrec._log import Interrupted as Interrupted
from jaxrec._log import Log as Log
from jaxrec.train import autoencoders as autoencoders
from jaxrec.train import lambda_opt as lambda_opt
from jaxrec.train import mars as mars
from jaxrec.train.checkpoint import Checkpoint as Checkpoint
from jaxrec.train.examples import Batch as Batch
from jaxrec.train.examples import Examples as Examples
from jaxrec.train.examples import by_user as by_user
from jaxrec.train.examples import groups as groups
from jaxrec.train.examples import singles as singles
from jaxrec.train.loop import State as State
from jaxrec.train.loop import epoch as epoch
from jaxrec.train.loop import fit as fit
from jaxrec.train.loop import init as init
from jaxrec.train.metric import covariance_objective as covariance_objective
from jaxrec.train.metric import relation_objective as relation_objective
from jaxrec.train.metric import sml_objective as sml_objective
from jaxrec.train.metric import translation_objective as translation_objective
from jaxrec.train.objectives import combined_objective as combined_objective
from jaxrec.train.objectives import gram_objective as gram_objective
from jaxrec.train.objectives import in_batch_objective as in_batch_objective
from jaxrec.train.objectives import log_q as log_q
from jaxrec.train.objectives import pairwise_objective as pairwise_objective
from jaxrec.train.objectives import rows_objective as rows_objective
from jaxrec.train.objectives import vectors_objective as vectors_objective
from jaxrec.train.runs import Sweep as Sweep
from jaxrec.train.sweep import DivergenceWarning as DivergenceWarning
from jaxrec.train.sweep import Recipe as Recipe
from jaxrec.train.sweep import grid as grid
from jaxrec.train.sweep import sweep as sweep
