"""The kernel of evaluation: product, mask and exact top-k in one jitted function of a block of users."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import metrics
from jaxrec._csr import owners
from jaxrec._identity import reads
from jaxrec._keys import check_key
from jaxrec._log import Log
from jaxrec._mesh import divided, mesh_of, on_mesh, on_own_rows, replicated, using
from jaxrec._numerics import accumulated, as_integer, integer, power_of_two
from jaxrec._partials import check_static
from jaxrec._platform import concurrently, size
from jaxrec.interactions import DataWarning, Interactions, check_interactions
from jaxrec.models._initial import check_tables
from jaxrec.typing import Array, ArrayLike, Key, Model, Variables

_GROUP = 64  # items per group in the first stage of top-k
_AT_ONCE = 8  # blocks in one call, if there are many: they share the memory of their scores
_FEW = 32  # users for whom ordering their scores takes less time than ordering the table of items


def given_ids(name: str, ids: ArrayLike, n: int | None) -> np.ndarray:
    """Returns ids as int32 [U].

    Raises:
        ValueError: unless they are one or more integers, below `n` if given, else below 2³¹ − 1.
    """
    ids = np.asarray(ids)
    if ids.ndim != 1 or len(ids) == 0 or ids.dtype.kind not in "iu":
        raise ValueError(f"{name} is {ids.dtype}{list(ids.shape)}; give a column of one or more integer ids")
    largest = int(np.iinfo(np.int32).max if n is None else n) - 1
    if ids.min() < 0 or ids.max() > largest:
        more = "; train.fold_in and solvers.ials.fold_in compute vectors of new users" * (name == "users")
        raise ValueError(f"{name} run from {ids.min()} to {ids.max()}; ids are 0 .. {largest}{more}")
    return ids.astype(np.int32)


def lengths(ks: Sequence[int] | int) -> tuple[int, ...]:
    """Returns the lengths of lists, ascending, each once."""
    given = [ks] if as_integer(ks) is not None or isinstance(ks, str) else np.asarray(ks).reshape(-1).tolist()
    return tuple(sorted({integer("ks", k) for k in given}))


def evaluated_users(train: Interactions, test: Interactions, users: ArrayLike | None) -> np.ndarray:
    """Returns the users to evaluate, int32 [U]: those of `users` that have a test pair; None means
    all users.

    Warns of test pairs that are also training pairs, of users without training pairs, and of more
    than twice as many test as training pairs, because these are then perhaps swapped.
    """
    check_interactions(train=train, test=test)
    shapes = [(part.n_users, part.n_items) for part in (train, test)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"train is {shapes[0]} users by items, but test is {shapes[1]}; split one set of Interactions")
    chosen = np.arange(test.n_users) if users is None else given_ids("users", users, test.n_users)
    chosen = chosen[np.asarray(test.user_degrees)[chosen] > 0].astype(np.int32)
    if len(chosen) == 0:
        raise ValueError("none of the users has a test pair; give users with test pairs")
    each = np.flatnonzero(np.bincount(chosen)).astype(np.int32)
    tested = test.take(each)  # reads only the rows of these users
    rows, items = tested.pairs()
    both = int(np.asarray(train.contains(each[rows], items)).sum())
    if both:
        warnings.warn(
            f"{both} of {tested.n_pairs} test pairs are also training pairs: they are masked and count as missed",
            DataWarning,
            stacklevel=3,
        )
    n_known = int(np.asarray(train.user_degrees)[each].sum(dtype=np.int64))
    if tested.n_pairs > 2 * n_known:
        warnings.warn(
            f"the evaluated users have {tested.n_pairs} test pairs but only {n_known} training pairs; are train and "
            "test swapped?",
            DataWarning,
            stacklevel=3,
        )
    cold = int((np.asarray(train.user_degrees)[chosen] == 0).sum())
    if cold:
        warnings.warn(
            f"{cold} of {len(chosen)} evaluated users have no training pair; splits.drop_cold leaves them out",
            DataWarning,
            stacklevel=3,
        )
    return chosen


def ranked(
    model: Model,
    variables: Any,
    users: np.ndarray,
    *,
    k: int,
    seen: Interactions | None,
    demoted: Interactions | None,
    key: Key | None,
    block: int | None,
    judge: Callable[..., Any] | None = None,
    candidates: ArrayLike | None = None,
    histories: Interactions | None = None,
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Returns the k best items of users [U], on the host.

    Args:
        model: a model with the method `rows`, and perhaps `vectors`.
        variables: the model's variables, as returned by `model.init`.
        users: ids int32 [U].
        k: length of the lists.
        seen: pairs to leave out.
        demoted: the relevant pairs. Without a key, they rank below other items of the same score.
        key: typed key for the order of equal scores.
        block: number of users scored at a time.
        judge: function of (scores [B, N'], places, where) that returns a tree of arrays [B], or
            None. `places` are the rows and columns of the pairs `demoted`, padded with row B;
            `where` [B, N'] is True for items that are not seen.
        candidates: ids [n] of the items that may be recommended; None is all.
        histories: the items by which the model knows users; None if it does not need them.

    Returns:
        scores [U, k], float32 or float64, items int32 [U, k], and what `judge` returns, each [U],
        or None.

    Raises:
        TypeError, ValueError: see `jaxrec.evaluate.top_k`.
    """
    n_items = checked_sizes(model, variables, users, k, (seen, demoted), histories)
    say_empty(histories, users, stacklevel=4)
    mesh, k = mesh_of(variables), int(k)
    if block is None:
        cells = size("ranked_scores", variables) * (1 if mesh is None else mesh.size)
        block = max(cells // n_items, 1)
    blocks = _blocks(users, integer("block", block))
    columns = _order(key, n_items)
    allowed = None
    if candidates is not None:
        allowed = np.zeros(n_items, bool)
        allowed[columns[1][given_ids("items", candidates, n_items)]] = True
    lengths_of = [_room(pairs, blocks) for pairs in (histories, seen, demoted)]
    of_model = {"model": model, "reads": reads(model)}
    how: dict[str, Any] = {
        "k": min(power_of_two(k), n_items),
        "lower": key is None and demoted is not None,
        "judge": judge,
    }
    at_once = _AT_ONCE if len(blocks) >= 4 * _AT_ONCE else 1

    def inputs(variables: Variables, columns: tuple[Array, Array]) -> Iterator[tuple]:
        tables = None
        if hasattr(model, "vectors") and len(users) > _FEW:
            tables = _tables(variables, columns[0], **of_model)
        for start in range(0, len(blocks), at_once):
            some = blocks[np.minimum(np.arange(start, start + at_once), len(blocks) - 1)]  # the last repeats a block
            of_blocks = [_of_blocks(pairs, some, n) for pairs, n in zip((histories, seen, demoted), lengths_of)]
            yield variables, tables, columns, allowed, (some, *of_blocks)

    with using(mesh):
        on_devices = on_mesh((variables, columns), mesh)  # once, not in every call
        found = concurrently(_ranked, inputs(*on_devices), **of_model, **how)
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *found)  # [blocks, B, ...]
    scores, items, judged = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: len(users)], joined)
    if np.isnan(scores).any():
        bad = np.isnan(scores).any(axis=1)
        raise ValueError(
            f"{bad.sum()} users have scores of NaN, user {users[bad][0]} the first; check that training did not diverge"
        )
    return scores[:, :k], items[:, :k], judged


# ---------------------------------------------------------------------- checks


def checked_sizes(
    model: Model,
    variables: Any,
    users: np.ndarray,
    k: int,
    masks: Sequence[Interactions | None],
    histories: Interactions | None,
) -> int:
    """Returns N, after checking that all arguments of `ranked` fit the model and each other."""
    if not hasattr(model, "apply"):
        raise TypeError(
            f"model is a {type(model).__name__}; give a model, or evaluate.scorer(fn) for a function. The model comes "
            "first, then its variables"
        )
    if isinstance(model, type):
        raise TypeError(f"model is the class {model.__name__}; give the instance that was trained")
    if isinstance(variables, tuple) and variables and isinstance(variables[-1], Log):
        raise TypeError(
            "variables ends with a Log; unpack what was returned: model, variables, log = fit(...) of a solver, or "
            "state, log = train.fit(...), whose variables are state.variables"
        )
    if hasattr(type(variables), "variables"):
        raise TypeError(f"variables is a {type(variables).__name__}; pass its .variables")
    check_static(model)
    check_histories(model, histories)
    if histories is not None:
        given_ids("users", users, histories.n_users)
    leaves, tree = jax.tree.flatten(variables)
    forms = tuple((jnp.shape(x), jax.dtypes.result_type(x)) for x in leaves)
    n_known = None if histories is None else histories.n_items
    static: Any = model  # hashable, by `check_static`
    n_items, n_users = _sizes(static, tree, forms, n_known, reads(model))
    for interactions in masks:
        if interactions is not None and interactions.n_items != n_items:
            raise ValueError(
                f"the model scores {n_items} items, but the interactions hold {interactions.n_items}; use one id map"
            )
        if interactions is not None and histories is not None and interactions.n_users != histories.n_users:
            raise ValueError(
                f"histories are of {histories.n_users} users, but the interactions of {interactions.n_users}, so that "
                "ids mean different users; give Interactions over the same ids"
            )
    given_ids("users", users, n_users)
    seen = masks[0]
    if seen is not None and n_users is not None and seen.n_users != n_users:
        raise ValueError(
            f"the model knows {n_users} users, but the interactions hold {seen.n_users}, so that ids mean different "
            "users; give Interactions over the model's users"
        )
    if as_integer(k) is None or not 1 <= k <= n_items:
        raise ValueError(f"k={k!r}, but the catalogue has {n_items} items; give an integer of 1 to {n_items}")
    return n_items


@functools.lru_cache(maxsize=256)
def _sizes(model: Model, tree: Any, forms: tuple, n_known: int | None, reads: tuple) -> tuple[int, int | None]:
    """Returns N, and M if the model tells it.

    Tracing a model takes longer than scoring a user, so each model is traced once per form of its
    variables.

    Args:
        model: the model.
        tree: structure of the variables.
        forms: shape and dtype of each variable.
        n_known: number of items of the histories; None if the model takes none.
        reads: what the model's functions read from globals and closures.
    """
    del reads
    variables = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*form) for form in forms])
    whole: Any = functools.partial(jax.ShapeDtypeStruct, dtype=np.int32)
    known = None if n_known is None else Interactions(whole((2,)), whole((1,)), None, None, 1, n_known)
    try:
        row = jax.eval_shape(functools.partial(_rows, model), variables, whole((1,)), known)
    except Exception as error:
        name = type(model).__name__
        if type(error).__name__ == "ApplyScopeInvalidVariablesTypeError":  # what flax raises for params alone
            raise TypeError(
                f'variables are not those of {name}; pass them whole, such as {{"params": params}}'
            ) from error
        if type(error).__name__.startswith("Scope"):  # flax's errors of variables that a module cannot take
            raise ValueError(
                f"the variables do not fit {name}: {str(error).partition(' (http')[0]} Create the model with the sizes "
                "of these variables, such as MF(1, n_items) for the vector of one new user"
            ) from error
        if isinstance(error, AttributeError) and not hasattr(model, "rows"):
            raise TypeError(f"{name} has no method rows; evaluation needs rows(users), all scores [B, N]") from error
        raise
    if len(row.shape) != 2:
        raise ValueError(f"the model gives {list(row.shape)} for users [1]; it must give a row per user, [B, N]")
    if not jnp.issubdtype(row.dtype, jnp.floating):
        raise TypeError(f"the model's scores are {row.dtype}; return floats, such as scores.astype(jnp.float32)")
    check_tables(model, variables)
    n_users, n_items = getattr(model, "n_users", None), as_integer(getattr(model, "n_items", None))
    if n_items not in (None, row.shape[1]):
        raise ValueError(
            f"{type(model).__name__} scores {row.shape[1]} items, but its n_items is {n_items}; give variables with "
            "one row for each item"
        )
    if n_users is None and hasattr(model, "vectors"):
        n_users = jax.eval_shape(functools.partial(model.apply, method="vectors"), variables)[0].shape[0]
    return row.shape[1], n_users


def check_histories(model: Model, histories: Interactions | None) -> None:
    """Raises `ValueError` if a model that knows users by their items gets no histories, or if
    another model gets some.
    """
    name = type(model).__name__
    if not getattr(model, "needs_histories", False):
        if histories is not None:
            raise ValueError(f"{name} does not know users by their items; do not pass histories")
        return
    if histories is None:
        raise ValueError(
            f"{name} knows users by their items; pass histories=, the Interactions that it may see, such as "
            "histories=train. They are not taken from the masked pairs, which may hold validation pairs"
        )
    check_interactions(histories=histories)
    n_items = getattr(model, "n_items", None)
    if n_items is not None and histories.n_items != n_items:
        raise ValueError(f"the model scores {n_items} items, but histories hold {histories.n_items}; use one id map")


def say_empty(histories: Interactions | None, users: np.ndarray, *, stacklevel: int) -> None:
    """Warns with a `DataWarning` if some of the users have no items in the histories."""
    if histories is None:
        return
    empty = np.asarray(histories.user_degrees)[users] == 0
    if empty.any():
        warnings.warn(
            f"{empty.sum()} of {len(users)} users, user {users[empty][0]} the first, have no items in the histories, "
            "so that all of them get the same scores; pass histories that hold their items",
            DataWarning,
            stacklevel=stacklevel,
        )


def by_name(histories: Interactions | None) -> dict[str, Interactions]:
    """Returns the keyword `histories` of `model.apply`, or nothing if there are none."""
    return {} if histories is None else {"histories": histories}


# ---------------------------------------------------------------------- blocks of users


def room(n_pairs: int) -> int:
    """Returns the length of a padded list of pairs: a power of two, at least 256."""
    return power_of_two(max(n_pairs, 256))


def _blocks(users: np.ndarray, most: int) -> np.ndarray:
    """Divides users [U] into equal blocks, [n_blocks, B] with B of about `most` or fewer.

    A small B is a power of two. Of a large B, only the four highest bits may be set. So another
    number of users seldom needs another program, and few rows are padding. Padding repeats users.
    """
    size = -(-len(users) // -(-len(users) // most))
    step = 1 << max(size.bit_length() - 4, 0)
    size = power_of_two(size) if size <= _FEW else -(-size // step) * step
    n_blocks = -(-len(users) // size)
    return np.resize(users, n_blocks * size).reshape(n_blocks, size)


def _order(key: Key | None, n_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the random order [N] of the columns, and the column of each item [N].

    `top_k` keeps the first of equal scores, which must not be the smallest id.
    """
    if key is None:
        return _permutation((), n_items)
    check_key(key)
    return _permutation(tuple(np.asarray(jax.random.key_data(key)).reshape(-1).tolist()), n_items)


@functools.lru_cache(maxsize=8)
def _permutation(seed: tuple[int, ...], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a random permutation, int32 [n], and its inverse."""
    order = np.random.default_rng(seed).permutation(n).astype(np.int32)
    return order, np.argsort(order).astype(np.int32)


def area(scores: Array, places: tuple[Array, Array], where: Array) -> Array:
    """Returns the area under the ROC curve of each row."""
    return metrics.auc(scores, jnp.zeros(scores.shape, bool).at[places].set(True, mode="drop"), where=where)


def _room(interactions: Interactions | None, users: np.ndarray) -> int | None:
    """Returns L, the length of the lists of pairs of blocks of users [n_blocks, B]."""
    if interactions is None:
        return None
    return room(int(np.asarray(interactions.user_degrees, np.int64)[users].sum(1).max()))


def _of_blocks(interactions: Interactions | None, users: np.ndarray, length: int | None) -> Interactions | None:
    """Returns the rows of blocks of users [n_blocks, B]: `indptr` [n_blocks, B + 1], and `indices`
    [n_blocks, L] with L = `length`.

    Flat lists need less memory than rows padded to the longest user.
    """
    if interactions is None:
        return None
    parts = [interactions.take(block, capacity=length) for block in users]
    indptr, indices = (np.stack([getattr(part, name) for part in parts]) for name in ("indptr", "indices"))
    return Interactions(indptr, indices, None, None, users.shape[1], interactions.n_items)


def _edges(block: Interactions | None, places: Array) -> tuple[Array, Array] | None:
    """Returns the row and the column of each pair of a block [B, N], both [L].

    `places` [N] are the columns of the items. Padding has row B, which a scatter drops.
    """
    if block is None:
        return None
    return owners(block.indptr[1:], len(block.indices)), places[block.indices]


def _rows(model: Model, variables: Variables, users: Array, histories: Interactions | None = None) -> Array:
    """Scores all items for users, at full precision."""
    with jax.default_matmul_precision("highest"):
        return model.apply(variables, users, method="rows", **by_name(histories))


def _vectors(model: Model, variables: Variables) -> tuple[Array, Array]:
    """Returns user vectors [M, K] and item vectors [N, K]."""
    user, item = map(accumulated, model.apply(variables, method="vectors"))
    return user, item


def _bad_users(user: Array) -> Array:
    """Returns which vectors of users [B, K] are NaN or infinite: this may hide behind the mask or the padding."""
    return ~jnp.isfinite(user).all(axis=1)


def _bad_items(item: Array, scores: Array | None = None) -> Array:
    """Returns whether a vector of an item [N, K] is NaN or infinite.

    If there is one, a score of each user is not finite: given `scores` that are, the table is not
    read. For few users, reading it takes longer than the product.
    """
    found = lambda: ~jnp.isfinite(item).all()  # noqa: E731
    if scores is None:
        return found()
    return jax.lax.cond(jnp.isfinite(scores).all(), lambda: jnp.zeros((), bool), found)


@functools.partial(jax.jit, static_argnames=("model", "reads"))
def _tables(variables, order, *, model, reads):
    """Returns `_vectors` with the items in the random `order` and padded, as [K, N']."""
    del reads
    user, item = _vectors(model, variables)
    bad = _bad_users(user) | _bad_items(item)
    item = replicated(item)  # each device ranks its users among all items
    return user, jnp.pad(item[order], ((0, -len(order) % _GROUP), (0, 0))).T, bad


@functools.partial(jax.jit, static_argnames=("model", "k", "lower", "judge", "reads"))
def _ranked(variables, tables, columns, allowed, inputs, *, model, k, lower, judge, reads):
    """Returns scores and items [n_blocks, B, k] of some blocks, and what `judge` returns.

    `columns` are the random order of the items [N], which breaks ties, and the column of each item
    [N]. Columns are padded to a multiple of the group size, N'. `allowed` [N] is False for columns
    that may not be recommended; None allows all. `tables` are those of `_tables`, or None. `reads`
    is what the model's functions read from globals and closures: jit compiles again if it has
    changed.
    """
    del reads
    order, places = columns
    n_items = len(order)

    def padded(rows):
        return jnp.pad(rows[:, order], ((0, 0), (0, -n_items % _GROUP)))

    def scored(users, histories):
        if tables is None and hasattr(model, "vectors"):
            user, item = _vectors(model, variables)
            own = divided(user[users])
            rows = jnp.matmul(own, item.T, precision="highest")
            return padded(rows), _bad_users(own) | _bad_items(item, rows)
        if tables is not None:
            user, item, bad = tables
            return jnp.matmul(divided(user[users]), item, precision="highest"), bad[users]
        rows = accumulated(_rows(model, variables, users, histories))
        return padded(rows), jnp.isnan(rows).any(axis=1)

    def ranked(inputs):
        users, histories, *edges = inputs
        seen, positives = (_edges(block, places) for block in edges)
        scores, bad = divided(scored(divided(users), histories))
        # Only the padding is written: on CPU a mask over all columns takes longer than the product.
        scores = scores.at[:, n_items:].set(-jnp.inf)
        if allowed is not None:
            scores = scores.at[:, :n_items].set(jnp.where(allowed, scores[:, :n_items], -jnp.inf))
        if seen is not None:
            scores = scores.at[seen].set(-jnp.inf, mode="drop")
        judged = None if judge is None else judge(scores, positives, scores > -jnp.inf)
        if lower:
            scores = scores.at[positives].set(_one_lower(scores.at[positives].get(mode="clip")), mode="drop")
        values, at = on_own_rows(functools.partial(_grouped_top_k, k=k), scores)
        items = jnp.where(values > -jnp.inf, order[jnp.minimum(at, n_items - 1)], -1)
        return jnp.where(bad[:, None], jnp.nan, values), items, judged

    return replicated(jax.lax.map(ranked, inputs))


def _one_lower(x: Array) -> Array:
    """Returns the next float below, or the one after it.

    Below +inf comes the largest finite number; −inf, which marks masked items, stays. `nextafter`
    would step from 0 to a denormal, which CPUs flush to 0.
    """
    info = jnp.finfo(x.dtype)
    lower = jnp.where(jnp.isfinite(x), x - jnp.maximum(jnp.abs(x) * info.eps, info.tiny), x)
    return jnp.where(x == jnp.inf, jnp.asarray(info.max, x.dtype), lower)


def _grouped_top_k(scores: Array, k: int) -> tuple[Array, Array]:
    """Computes `lax.top_k` of [B, G·C] in two stages: the k best groups by their maximum, then the
    k best of their items.

    It is exact, since each of the k best items lies in one of the k best groups. A group is a
    strided set of columns, so that the maxima are an elementwise maximum of slices and nothing is
    copied. `lax.top_k` of long rows takes more time than the product that computes them; two stages
    take less.
    """
    n_rows, width = scores.shape
    n_groups = width // _GROUP
    if k >= n_groups:
        return jax.lax.top_k(scores, k)
    best = scores.reshape(n_rows, _GROUP, n_groups).max(axis=1)
    _, group = jax.lax.top_k(best, k)
    columns = group[:, None, :] + n_groups * jnp.arange(_GROUP, dtype=group.dtype)[None, :, None]
    columns = columns.reshape(n_rows, -1)
    values, at = jax.lax.top_k(jnp.take_along_axis(scores, columns, axis=1, mode="promise_in_bounds"), k)
    return values, jnp.take_along_axis(columns, at, axis=1, mode="promise_in_bounds")
