"""Models as Linen modules.

`model.init(key, users, items)` draws the variables, and `model.apply(variables, users, items)`
scores pairs.
"""

from jaxrec.models import attention as attention
from jaxrec.models import implicit as implicit
from jaxrec.models.autoencoders import MultDAE as MultDAE
from jaxrec.models.autoencoders import MultVAE as MultVAE
from jaxrec.models.autoencoders import RecVAE as RecVAE
from jaxrec.models.ease import EASE as EASE
from jaxrec.models.filters import SpectralFilter as SpectralFilter
from jaxrec.models.functions import from_functions as from_functions
from jaxrec.models.functions import from_nnx as from_nnx
from jaxrec.models.graph import LightGCN as LightGCN
from jaxrec.models.knn import ItemKNN as ItemKNN
from jaxrec.models.mars import MAR as MAR
from jaxrec.models.mars import MARS as MARS
from jaxrec.models.mars import free as free
from jaxrec.models.mars import hybrid as hybrid
from jaxrec.models.mars import projected as projected
from jaxrec.models.metric import LRML as LRML
from jaxrec.models.metric import TransCF as TransCF
from jaxrec.models.mf import MF as MF
from jaxrec.models.mf import cosine as cosine
from jaxrec.models.mf import dot as dot
from jaxrec.models.mf import negative_squared_distance as negative_squared_distance
from jaxrec.models.neural import NeuMF as NeuMF
from jaxrec.models.serving import export as export
from jaxrec.models.simplex import MeanPool as MeanPool
from jaxrec.models.simplex import SelfAttention as SelfAttention
from jaxrec.models.simplex import SimpleX as SimpleX
from jaxrec.models.simplex import UserAttention as UserAttention
from jaxrec.models.trivial import item_id as item_id
from jaxrec.models.trivial import popularity as popularity
from jaxrec.models.trivial import random as random
from jaxrec.models.valid import VALID as VALID
from jaxrec.models.valid import MacridVAE as MacridVAE
