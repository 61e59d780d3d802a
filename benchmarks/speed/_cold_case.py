"""One case of `benchmarks.speed.cold` in a process of its own; prints its result as JSON.

Each side imports only what it needs, because the imports are part of what is measured.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

from benchmarks.speed._peak import peak_mb

DIM, K = 64, 20


def train_of(folder: pathlib.Path) -> tuple:
    """Returns indptr, indices and the shape of the train part."""
    import numpy as np

    with np.load(folder / "train.npz") as file:
        return file["indptr"], file["indices"], tuple(file["shape"].tolist())


# ---------------------------------------------------------------------- jaxrec


def interactions(folder: pathlib.Path) -> Any:
    """Returns the train part as `Interactions`."""
    import jaxrec as jr

    indptr, indices, (n_users, n_items) = train_of(folder)
    return jr.Interactions(indptr, indices, None, None, n_users, n_items)


def als(folder: pathlib.Path, how: dict[str, Any]) -> None:
    """Fits WRMF and ranks for all users."""
    import functools

    import jax
    import numpy as np

    import jaxrec as jr

    train = interactions(folder)
    solver = functools.partial(jr.solvers.ials.conjugate_gradient, steps=how["steps"])
    model, variables, _ = jr.solvers.wrmf.fit(
        train,
        dim=DIM,
        key=jax.random.key(0),
        solver=solver,
        sweeps=how["sweeps"],
        regularization=how["regularization"],
        alpha=how["alpha"] - 1,
        progress=False,
    )
    jr.evaluate.top_k(model, variables, np.arange(train.n_users), k=K, seen=train)


def softmax(folder: pathlib.Path, how: dict[str, Any]) -> None:
    """Trains MF as the quickstart does, with early stopping, and evaluates it on the test part."""
    import functools

    import jax

    from benchmarks import quickstart
    from jaxrec.data import datasets, splits

    data = datasets.load("movielens-small", minimum=quickstart.MINIMUM)
    order = functools.partial(splits.temporal_order, key=jax.random.key(0))
    split = splits.ratio(data.interactions, (0.8, 0.1, 0.1), order=order)
    settings = quickstart.SETTINGS | how
    model, state, _ = quickstart.train("MF-softmax", split, 0, settings)
    report(model, state.variables, split.train.union(split.valid), split.test)


def valid(folder: pathlib.Path, how: dict[str, Any]) -> None:
    """Trains VALID on citeulike-a for an epoch, and evaluates it on the test part."""
    import functools

    import jax
    import optax

    import jaxrec as jr
    from jaxrec.data import datasets

    data = datasets.load("citeulike-a-valid")
    model, tx = jr.models.VALID(data.train.n_items, n_interests=4, n_blocks=2), optax.adam(1e-3)
    objective = functools.partial(jr.train.autoencoders.objective, model=model)
    state = jr.train.init(jax.random.key(0), model, tx)
    state, _ = jr.train.fit(
        state, objective, tx, data.train, epochs=1, batch_size=512, examples=jr.train.by_user, progress=False
    )
    report(model, state.variables, data.train, data.test, histories=data.train)


def report(model: Any, variables: Any, train: Any, test: Any, **more: Any) -> None:
    """Evaluates, and prints the report to nowhere."""
    import jaxrec as jr

    str(jr.evaluate.full_ranking(model, variables, train, test, ks=(10, 20), **more))


def one_user(folder: pathlib.Path, how: dict[str, Any]) -> None:
    """Recommends to a user with the saved factors."""
    import numpy as np

    import jaxrec as jr

    train = interactions(folder)
    with np.load(folder / "factors.npz") as file:
        tables = {"user": file["user"], "item": file["item"]}
    model = jr.models.MF(train.n_users, train.n_items, dim=DIM)
    jr.evaluate.top_k(model, {"params": tables}, np.array([7]), k=K, seen=train)


def imported(folder: pathlib.Path, how: dict[str, Any]) -> None:
    """Imports the package, whose modules are imported when they are first used."""
    import jaxrec  # noqa: F401


def all_imported(folder: pathlib.Path, how: dict[str, Any]) -> None:
    """Imports all modules of the package."""
    import jaxrec

    for name in jaxrec.__all__:
        getattr(jaxrec, name)


# ---------------------------------------------------------------------- peers


def matrix(folder: pathlib.Path) -> Any:
    """Returns the train part as a SciPy matrix."""
    import numpy as np
    import scipy.sparse

    indptr, indices, shape = train_of(folder)
    return scipy.sparse.csr_matrix((np.ones(len(indices), np.float32), indices, indptr), shape)


def implicit_model(how: dict[str, Any]) -> Any:
    """Returns implicit's ALS on all cores."""
    from implicit.cpu.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    threadpool_limits(1, "blas")  # implicit recommends it, because it has its own threads
    return AlternatingLeastSquares(**{"factors": DIM, "random_state": 0, "use_cg": True} | how)  # on all cores


def implicit_als(folder: pathlib.Path, how: dict[str, Any]) -> None:
    """Fits implicit's ALS and ranks for all users."""
    import numpy as np

    train = matrix(folder)
    model = implicit_model({name: how[name] for name in ("regularization", "alpha", "iterations")})
    model.fit(train, show_progress=False)
    if how.get("save"):
        np.savez(folder / "factors.npz", user=model.user_factors, item=model.item_factors)
    model.recommend(np.arange(train.shape[0]), train, N=K)


def implicit_one_user(folder: pathlib.Path, how: dict[str, Any]) -> None:
    """Recommends to a user with the saved factors."""
    import numpy as np

    train, model = matrix(folder), implicit_model({})
    with np.load(folder / "factors.npz") as file:
        model.user_factors, model.item_factors = file["user"], file["item"]
    model.recommend(7, train[7], N=K)


def jax_imported(folder: pathlib.Path, how: dict[str, Any]) -> None:
    """Imports jax."""
    import jax  # noqa: F401


CASES = {
    "als": (als, implicit_als),
    "one user": (one_user, implicit_one_user),
    "softmax": (softmax, None),
    "valid": (valid, None),
    "import": (imported, jax_imported),
    "import, all modules": (all_imported, jax_imported),
}


def main() -> None:
    """Runs the side and the case of the command line."""
    given = json.loads(sys.argv[1])
    ours, theirs = CASES[given["case"]]
    seconds: list[float] = []
    if given["side"] == "jaxrec" and not given["case"].startswith("import"):
        import jax

        import jaxrec as jr

        if given["cache"]:
            jr.compilation_cache(given["cache"])

        def listen(event: str, duration: float, **_: Any) -> None:
            if event == "/jax/core/compile/backend_compile_duration":
                seconds.append(duration)

        jax.monitoring.register_event_duration_secs_listener(listen)
    side = ours if given["side"] == "jaxrec" else theirs
    side(pathlib.Path(given["folder"]), given["how"])
    print(json.dumps({"peak_mb": peak_mb(), "compile_s": sum(seconds)}))


if __name__ == "__main__":
    main()
