"""Time and memory of a step of λOpt, against a step of only the parameters: MF-BPR, ml-1m, DUI.

There are 128 dimensions and batches of 1,024. Three ways to train run alternately in one process:
with one fixed λ; with a step of Λ after each step of Θ; and with the same optimiser but without
steps of Λ. The difference of the last two is the time of a step of Λ. Times are medians. The ratio
is this difference divided by the time of a step with fixed λ. Memory is what XLA reports for the
compiled steps, in units of the tables of users and items: arguments, temporaries, and outputs that
do not reuse the buffer of an argument. It is given for a state that is donated, and for one that is
kept, as in `fit`. Data are not counted.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrec as jr
from benchmarks import _record
from benchmarks.speed import _measure
from benchmarks.studies._lambda_opt import Part, fixed, learned, prepare
from jaxrec.train import Recipe

BATCH, DIM = 1024, 128
TITLE = "Speed of a step of Λ"
COLUMNS = {
    "step of Λ divided by step of Θ: CPU time (wall)": "{cpu_ratio:.2f} ({ratio:.2f})",
    "step of Θ: wall (CPU), ms": "{fixed_wall_ms:.1f} ({fixed_cpu_ms:.1f})",
    "both, ms": "{in_turn_wall_ms:.1f} ({in_turn_cpu_ms:.1f})",
    "memory in tables, both: donated, kept": "{in_turn_tables_donated:.1f}, {in_turn_tables_kept:.1f}",
    "memory in tables, one fixed λ": "{fixed_tables_donated:.1f}, {fixed_tables_kept:.1f}",
}


def recipes(part: Part) -> dict[str, Recipe]:
    """Returns the three ways to train, with as many dimensions as the released code."""
    model = jr.models.MF(part.train.n_users, part.train.n_items, dim=DIM, scale=0.1)
    one = fixed(part, regularization=jnp.array(0.01), model=model)
    both, never = (learned(part, lambda_rate=1e-3, model=model, every=every) for every in (1, 10**9))
    return {"fixed": one, "in_turn": both, "never": never}


def runner(part: Part, recipe: Recipe) -> Any:
    """Returns a function that trains one more epoch."""
    state = jr.train.init(jax.random.key(0), recipe.model, recipe.tx)

    def run() -> None:
        nonlocal state
        options = {"epochs": int(state.epoch) + 1, "batch_size": BATCH, "progress": False}
        state, _ = jr.train.fit(state, recipe.objective, recipe.tx, part.train, **options)

    return run


def tables_of_memory(part: Part, recipe: Recipe, *, donated: bool) -> float:
    """Returns the memory of a compiled step, in units of the tables of users and items."""
    state = jr.train.init(jax.random.key(0), recipe.model, recipe.tx)
    params, key = state.variables["params"], jax.random.key(1)
    users, items = (jnp.asarray(ids[:BATCH]) for ids in part.train.pairs())
    batch = jr.train.Batch.of(users, items)

    def step(params: Any, opt_state: Any, key: jax.Array, batch: jr.train.Batch) -> Any:
        def value(params, key, batch, other=None):
            return (other or recipe.objective)({"params": params}, key, batch)

        return jr.optim.as_step(recipe.tx).step(value, params, opt_state, key, batch)

    step = jax.jit(step, donate_argnums=(0, 1) if donated else ())
    found = step.lower(params, state.opt_state, key, batch).compile().memory_analysis()
    used = found.argument_size_in_bytes + found.temp_size_in_bytes + found.output_size_in_bytes
    return (used - found.alias_size_in_bytes) / sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def main() -> None:
    """Measures and writes the record."""
    quick = _record.parser("speed.lambda_opt", __doc__, "ml-100k, 20 steps, 3 rounds").parse_args().quick
    steps, rounds = (20, 3) if quick else (60, 5)
    split = prepare("ml-100k" if quick else "ml-1m", 0)
    kept = np.zeros(split.train.n_pairs, bool)
    kept[np.random.default_rng(0).choice(split.train.n_pairs, steps * BATCH, replace=False)] = True
    part = Part(split.train.select(kept), split.valid.learn, epochs=1, batch_size=BATCH)
    ways = recipes(part)
    case, _ = _measure.compared({n: runner(part, recipe) for n, recipe in ways.items()}, rounds=rounds, units=steps)
    for seconds, label in (("wall_s", "ratio"), ("cpu_s", "cpu_ratio")):
        case[label] = (case[f"in_turn_{seconds}"] - case[f"never_{seconds}"]) / case[f"fixed_{seconds}"]
    for name in ("fixed", "in_turn"):
        for how in ("donated", "kept"):
            case[f"{name}_tables_{how}"] = tables_of_memory(part, ways[name], donated=how == "donated")
    facts = {"data": part.train.fingerprint(), "dim": DIM, "batch_size": BATCH, "steps": steps}
    _record.write("speed.lambda_opt", {"MF-BPR, DUI": case}, quick=quick, **facts)


if __name__ == "__main__":
    main()
