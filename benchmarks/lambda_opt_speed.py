"""Seconds and memory of a λOpt step against a step of the parameters alone: MF-BPR, ml-1m, DUI.

Three ways to train, in turn in one run, medians: one fixed λ, steps in turn (a step of Λ after each of Θ), and
steps in turn of which none is of Λ, so that the difference of the last two is the step of Λ itself. The ratio is that
step over one of the fixed λ. Memory is XLA's own account of the compiled steps, in tables of users and items together:
arguments, temporaries and outputs that are no argument's buffer, for a state that is donated and for one that is kept.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrec as jr
from benchmarks import _record
from benchmarks.studies._lambda_methods import Part, fixed, learned
from benchmarks.studies.lambda_opt import prepare
from jaxrec.optim import lambda_opt
from jaxrec.optim.moments import amsgrad, smooth_adam
from jaxrec.train import Recipe

BATCH, DIM = 1024, 128


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lambda_opt_speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="counted runs of each (default 5)")
    parser.add_argument("--steps", type=int, default=100, help="steps of a run (default 100)")
    parser.add_argument("--quick", action="store_true", help="the same code on ml-100k, 20 steps, 3 rounds")
    return parser.parse_args()


def model(part: Part) -> jr.models.MF:
    """As wide as the released code's."""
    return jr.models.MF(part.train.n_users, part.train.n_items, dim=DIM, scale=0.1)


def recipes(part: Part) -> dict[str, Recipe]:
    """The three ways."""
    both = learned(part, lambda_rate=1e-3, model=model(part))
    never = lambda_opt.alternate(optax.adam(1e-2), amsgrad(1e-3), simulated=smooth_adam(1e-2), every=10**9)
    one = fixed(part, regularization=jnp.array(0.01), model=model(part))
    return {"fixed": one, "in_turn": both, "never": both._replace(tx=never)}


def runner(part: Part, recipe: Recipe) -> Any:
    """A function that trains all pairs once more."""
    state = jr.train.init(jax.random.key(0), recipe.model, recipe.tx)

    def run() -> None:
        nonlocal state
        options = {"epochs": int(state.epoch) + 1, "batch_size": BATCH, "touched": recipe.touched, "progress": False}
        state, _ = jr.train.fit(state, recipe.objective, recipe.tx, part.train, **options)

    return run


def tables_of_memory(part: Part, recipe: Recipe, *, donated: bool) -> float:
    """Memory of one compiled step in tables of users and items together; the data are not counted."""
    state = jr.train.init(jax.random.key(0), recipe.model, recipe.tx)
    params, key = state.variables["params"], jax.random.key(1)
    users, items = (jnp.asarray(ids[:BATCH]) for ids in part.train.pairs())
    batch = jr.train.Batch(users, items, None, jnp.ones(BATCH, bool))
    value = lambda params, drawn: recipe.objective({"params": params}, *drawn)  # noqa: E731

    def step(params: Any, opt_state: Any, drawn: Any) -> Any:
        if isinstance(recipe.tx, lambda_opt.Alternating):
            return recipe.tx.step(value, params, opt_state, drawn)
        loss, slopes = jax.value_and_grad(value)(params, drawn)
        updates, opt_state = recipe.tx.update(slopes, opt_state, params)
        return loss, optax.apply_updates(params, updates), opt_state

    drawn = (key, batch) if recipe.touched is None else recipe.touched(key, batch)._replace(valid_value=None)
    compiled = jax.jit(step, donate_argnums=(0, 1) if donated else ()).lower(params, state.opt_state, drawn).compile()
    found = compiled.memory_analysis()
    used = found.argument_size_in_bytes + found.temp_size_in_bytes + found.output_size_in_bytes
    return (used - found.alias_size_in_bytes) / sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def main() -> None:
    """Measures and writes the record."""
    options = arguments()
    steps, rounds = (20, 3) if options.quick else (options.steps, options.rounds)
    part = prepare("ml-100k" if options.quick else "ml-1m", 0)
    kept = np.zeros(part.train.n_pairs, bool)
    kept[np.random.default_rng(0).choice(part.train.n_pairs, steps * BATCH, replace=False)] = True
    part = part._replace(train=part.train.select(kept))
    ways = recipes(part)
    memory = {
        f"{name}_tables_{how}": tables_of_memory(part, ways[name], donated=how == "donated")
        for name in ("fixed", "in_turn")
        for how in ("donated", "kept")
    }
    runs = {name: runner(part, recipe) for name, recipe in ways.items()}
    with _record.compilations() as compiled:
        for run in runs.values():
            run()
    times = _record.alternate(runs, rounds=rounds)
    case = {f"{name}_{figure}": value / steps for name in runs for figure, value in times[name].items()}
    for figure, label in (("wall_s", "ratio"), ("cpu_s", "cpu_ratio")):
        of_lambda = times["in_turn"][figure] - times["never"][figure]
        case[label] = of_lambda / times["fixed"][figure]
    case |= memory | {"compile_s": sum(compiled)}
    print(", ".join(f"{name} {value:.4g}" for name, value in case.items()))
    facts = {"data": part.train.fingerprint(), "dim": DIM, "batch_size": BATCH, "steps": steps}
    _record.write("lambda_opt_speed", {"MF-BPR, DUI": case}, quick=options.quick, **facts)


if __name__ == "__main__":
    main()
