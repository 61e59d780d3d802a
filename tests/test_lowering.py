"""The main programs, lowered for every platform on this machine: none calls a function of another platform.

A program is only traced and lowered here, so that no accelerator is needed and nothing is compiled.
"""

import contextlib
import dataclasses
import functools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

import jaxrec as jr
from jaxrec.data import synthetic
from jaxrec.evaluate import _kernel
from jaxrec.evaluate import sampled as sampled_ranking
from jaxrec.optim import lambda_opt, rowwise
from jaxrec.solvers import _alternate, _spectrum, ease, filters, gauss_newton, ials, rg2
from jaxrec.train import autoencoders, mars

PLATFORMS = ["cuda", *(pytest.param(name, marks=pytest.mark.deep) for name in ("cpu", "rocm", "tpu"))]
QUICK = {"mf rowwise.adam", "lightgcn", "als cholesky", "rg2", "top_k", "full_ranking"}  # the others are deep
FOREIGN = {  # prefixes of the functions of other platforms
    "cpu": ("cu", "hip", "Eigh", "Qr"),
    "cuda": ("cpu", "lapack", "hip", "Eigh", "Qr"),
    "rocm": ("cpu", "lapack", "cu", "Eigh", "Qr"),
    "tpu": ("cpu", "lapack", "cu", "hip"),
}
TRAIN, TEST = synthetic.checkerboard(40)
M, N, K = TRAIN.n_users, TRAIN.n_items, 8
MANY = 200  # items, enough for a top-k in two stages
KEY = jax.random.key(0)
SAMPLE = partial(jr.sampling.uniform, n_items=N, n=3)
MF = jr.models.MF(M, N, dim=K)
VALID = jr.models.VALID(N, n_interests=2, n_blocks=1, dim=K)
BPR = partial(jr.train.pairwise_objective, loss=jr.losses.bpr, sample=SAMPLE)


@pytest.fixture(autouse=True)
def as_optax_needs():
    with jax.numpy_dtype_promotion("standard"):
        yield


class Stop(Exception):
    """Ends a call before its program runs."""


def caught(module, name, call):
    """Returns the function `name` of a module, and the arguments with which `call` calls it; it does not run."""
    function, found = getattr(module, name), []

    def stop(*args, **static):
        found.append((args, static))
        raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(module, name, stop)
        call()
    return function, *found[0]


# ---------------------------------------------------------------------- training


def epoch(model, objective, tx, examples=jr.train.singles, vmapped=False):
    """An epoch, with the shapes of a state instead of a state."""

    def step(state, data):
        return jr.train.epoch(state, objective, tx, data, batch_size=8)

    def init(key):
        return jr.train.init(key, model, tx)

    if vmapped:
        step, init = jax.vmap(step, (0, None)), jax.vmap(init)
    state = jax.eval_shape(init, jax.random.split(KEY, 2) if vmapped else KEY)
    return jax.jit(step), (state, examples(TRAIN)), {}


def mf(tx):
    return epoch(MF, partial(BPR, model=MF), tx)


def facets():
    model, preset = jr.models.MARS(M, N, dim=K), jr.papers.mars.DEFAULT
    objective = partial(
        mars.objective,
        model=model,
        margin=mars.adaptive_margin(TRAIN),
        **jr.papers.mars.samplers(TRAIN, **preset["power"]),
        **preset["objective"],
    )
    return epoch(model, objective, rowwise.lazy(mars.optimizer(**preset["optimizer"])))


def alternation():
    objective = partial(BPR, model=MF)
    draws = partial(jr.train.lambda_opt.draws, objective=objective, train=TRAIN, valid=TEST)
    tx = lambda_opt.alternate(
        optax.adam(0.02), jr.optim.moments.amsgrad(0.01), simulated=jr.optim.moments.smooth_adam(0.02), draws=draws
    )
    return epoch(MF, objective, tx)


def interests():
    return epoch(VALID, partial(autoencoders.objective, model=VALID, total=10), optax.adam(0.1), jr.train.by_user)


def graph(**options):
    model = jr.models.LightGCN(TRAIN, dim=K, layers=2)
    return epoch(model, partial(BPR, model=model), optax.adam(0.1), **options)


def views():
    model = jr.models.XSimGCL(TRAIN, dim=K, layers=2)
    return epoch(model, partial(jr.train.contrastive_objective, model=model, sample=SAMPLE), optax.adam(0.1))


def histories():
    model = jr.models.SimpleX(M, N, dim=K, pool=jr.models.UserAttention())
    return epoch(model, partial(BPR, model=model), optax.adam(0.1), partial(jr.train.singles, histories=TRAIN))


# ---------------------------------------------------------------------- solvers

HOW = {"key": KEY, "regularization": 0.1, "progress": False}


def half_step(solver):
    """A half step of iALS. WRMF has the same program."""
    fit = partial(ials.fit, TRAIN, dim=K, unobserved_weight=0.1, solver=solver, **HOW)
    function, args, static = caught(_alternate, "half_step", fit)
    return jax.jit(partial(function, **static)), args, {}


def newton():
    params = {"user": jnp.zeros((M, K)), "item": jnp.zeros((N, K))}
    fit = partial(gauss_newton.fit, lambda params: (params["user"], params["item"]), params, TRAIN)
    return caught(gauss_newton, "_step", partial(fit, regularization=0.1, progress=False))


# ---------------------------------------------------------------------- evaluation


def ranking(call, model, *args, **options):
    """The program that ranks a block of users."""
    variables = jax.jit(model.init)(KEY, jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32))
    _, (function, inputs), static = caught(_kernel, "concurrently", lambda: call(model, variables, *args, **options))
    return function, next(inputs), static


def lists():
    seen = dataclasses.replace(TRAIN, n_items=MANY)
    return ranking(jr.evaluate.top_k, jr.models.MF(M, MANY, dim=K), np.arange(M), k=1, seen=seen)


def full(model, **options):
    return ranking(jr.evaluate.full_ranking, model, TRAIN, TEST, ks=1, auc=True, **options)


def sampled():
    variables = jax.jit(MF.init)(KEY, jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32))
    pairs, negatives = (np.arange(3), np.zeros(3, int)), np.tile([1, 2], (3, 1))
    call = partial(jr.evaluate.sampled_ranking, MF, variables, pairs, negatives)
    return caught(sampled_ranking, "_sampled_ranks", call)


PROGRAMS = {
    "mf optax.adam": partial(mf, optax.adam(0.1)),
    "mf rowwise.adam": partial(mf, rowwise.adam(0.1)),
    "mf rowwise.lazy": partial(mf, rowwise.lazy(optax.adagrad(0.1))),
    "mf rowwise.lazy_adam": partial(mf, rowwise.lazy_adam(0.1)),
    "mf rowwise.lazy_sgd": partial(mf, rowwise.lazy_sgd(0.1)),
    "mars": facets,
    "lambda_opt": alternation,
    "valid": interests,
    "lightgcn": graph,
    "xsimgcl": views,
    "simplex": histories,
    "lightgcn vmapped": partial(graph, vmapped=True),
    "als cholesky": partial(half_step, ials.cholesky),
    "als conjugate_gradient": partial(half_step, ials.conjugate_gradient),
    "als subspace": partial(half_step, partial(ials.subspace, block=4)),
    "rg2": lambda: caught(rg2, "_sweep", partial(rg2.fit, TRAIN, dim=K, **HOW)),
    "rg2 alpha": lambda: caught(rg2, "_sweep", partial(rg2.fit, TRAIN, dim=K, alpha=0.1, **HOW)),
    "rg2 decompose": lambda: caught(_spectrum, "_decompose", partial(rg2.decompose, TRAIN, dim=K, key=KEY)),
    "filters decompose": lambda: caught(filters, "_leading", partial(filters.decompose, TRAIN, dim=K, key=KEY)),
    "gauss_newton": newton,
    "ease": lambda: (ease.on_accelerator, (jnp.eye(N),), {}),
    "top_k": lists,
    "full_ranking": partial(full, MF),
    "full_ranking valid": partial(full, VALID, histories=TRAIN),
    "full_ranking filter": partial(full, jr.models.SpectralFilter(N, degree=2, dim=3), histories=TRAIN),
    "sampled_ranking": sampled,
}


@contextlib.contextmanager
def hidden_machine():
    """Raises an error if a traced program asks for this machine's devices, because it would only suit this machine."""

    def asked(*_, **__):
        raise AssertionError(
            "the program asks for this machine's platform; use _platform.sized or jax.lax.platform_dependent"
        )

    with pytest.MonkeyPatch.context() as patch:
        for name in ("default_backend", "devices", "local_devices"):
            patch.setattr(jax, name, asked)
        yield


def called(exported):
    """The names of the functions outside of XLA that a program calls."""
    return set(re.findall(r"custom_call @([\w.$]+)", exported.mlir_module()))


@functools.cache
def program(name):
    """Makes each program once for all platforms, so that tracing happens once."""
    return PROGRAMS[name]()


@pytest.mark.every_case
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.deep) for name in PROGRAMS]
)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_program_has_nothing_of_another_platform(name, platform):
    function, args, static = program(name)
    with hidden_machine():
        exported = export.export(function, platforms=[platform])(*args, **static)
    assert exported.platforms == (platform,)
    assert not [call for call in called(exported) if call.startswith(FOREIGN[platform])]


def test_the_test_detects_functions_and_choices_of_another_platform():
    @jax.jit
    def solved(x):
        return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(x), x)

    calls = called(export.export(solved, platforms=["cpu"])(jnp.eye(3)))
    assert any(call.startswith(FOREIGN["cuda"]) for call in calls)
    assert not any(call.startswith(FOREIGN["cpu"]) for call in calls)
    with hidden_machine(), pytest.raises(AssertionError, match="this machine's platform"):
        jax.jit(lambda x: x if jax.default_backend() == "cpu" else -x).trace(1.0)
