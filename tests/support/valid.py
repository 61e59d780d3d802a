"""A small data set, and parameters given by a formula, for the tests of VALID and of related models."""

import jax
import numpy as np

from jaxrec.interactions import Interactions
from jaxrec.models import VALID

M, N, D, W, K = 5, 12, 4, 3, 3

USERS = np.arange(M, dtype=np.int32)


def interactions(dense):
    return Interactions.from_pairs(*np.nonzero(dense), n_users=len(dense), n_items=dense.shape[1])


def table(shape, of):
    return of(*np.mgrid[tuple(map(slice, shape))])


DENSE = table((M, N), lambda u, i: (7 * u + 3 * i + u * i) % 5 < 2)

TRAIN = interactions(DENSE)

PARAMS = {
    "item": table((N, D), lambda i, j: np.sin(0.37 * i + 0.91 * j + 0.1)),
    "prototype": table((K, D), lambda k, j: np.sin(1.3 * k + 0.53 * j + 0.2)),
    "context": table((N, W), lambda i, a: np.sin(0.71 * a + 0.29 * i + 0.3)),
    "context_bias": table((W,), lambda a: 0.1 * np.sin(0.9 * a + 0.4)),
    "head": table((W, 2 * D), lambda a, o: np.sin(0.47 * o + 1.1 * a + 0.5)),
    "head_bias": table((2 * D,), lambda o: 0.1 * np.sin(0.6 * o + 0.6)),
}

SIZES = {"dim": D, "n_interests": K, "width": W, "temperature": 0.5, "decoder_temperature": 0.5, "chunk": 5}

TWO = VALID(N, **SIZES)

H, PROTOTYPES = (PARAMS[name] / np.linalg.norm(PARAMS[name], axis=1, keepdims=True) for name in ("item", "prototype"))

CLOSE = {"rtol": 1e-11, "atol": 1e-13}


def applied(model, users, *args, method, key=None, params=PARAMS, histories=TRAIN):
    """`model.apply` of users, jitted. Histories are those of TRAIN unless others are given; a key adds noise."""

    def run(variables, users, args, histories, key):
        rngs = {} if key is None else {"noise": key}
        return model.apply(variables, users, *args, histories=histories, method=method, rngs=rngs)

    return jax.jit(run)({"params": params}, users, args, histories, key)
