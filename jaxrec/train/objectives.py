"""Objectives: positives of a batch against negatives, as a scalar of (variables, key, batch).

Bind model, loss and sampler with `functools.partial`. A batch holds up to P positives of each user,
`items` [B, P]. A user's negatives are drawn and scored once for all of them. A model that knows
users by their items, such as `models.SimpleX`, gets the histories of the batch: call `fit` with
`examples=partial(train.singles, histories=...)`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import losses, sampling
from jaxrec._partials import check_function, check_parts
from jaxrec.interactions import Interactions
from jaxrec.train._checks import negatives_of
from jaxrec.train.examples import Batch
from jaxrec.typing import Array, Key, Loss, Model, Objective, Sampler, Scalar, Variables

Arguments = Callable[[Variables, Batch, Array], Mapping[str, Array]]


def pairwise_objective(
    variables: Variables,
    key: Key,
    batch: Batch,
    *,
    model: Model,
    loss: Loss,
    sample: Sampler,
    hardest: int | None = None,
    arguments: Arguments | None = None,
    leave_out: bool = False,
) -> jax.Array:
    """Computes the mean loss of the batch's positives against sampled negatives.

    The weights of the interactions weight the mean. A model with `dropout` above 0 gets a key for
    it.

    Args:
        variables: the model's variables, as returned by `model.init`.
        key: typed key from which negatives and dropout are drawn.
        batch: positives [B, P].
        model: a model that scores pairs by `model.apply(variables, users, items)`, with
            `histories=` if it needs them.
        loss: a loss of `jaxrec.losses` that compares positives with negatives.
        sample: a sampler of `jaxrec.sampling` that draws negatives [B, n], or [1, n] that the batch
            shares.
        hardest: number of negatives to keep in each row, those with the highest scores (Zhang et
            al. 2013, 10.1145/2484028.2484126). What the sampler draws is then the pool, and
            gradients flow only through the negatives kept. None keeps all.
        arguments: function of (variables, batch, negatives) that returns further keyword arguments
            of the loss, such as `partial(log_q, table=...)` for `losses.sampled_softmax`.
        leave_out: whether to pass the positives to the model as `left_out`. `models.SimpleX` then
            leaves them out of the history for the negatives too, as its released code does.

    Raises:
        ValueError: if `leave_out` is used with groups, `hardest` is larger than the pool, the loss
            does not return one value per positive, or the model needs histories and the batch has
            none.
    """
    sample_key, dropout_key = jax.random.split(key)
    negatives = negatives_of(sample, sample_key, batch.users[:, 0], model)
    options = _options(model, batch, dropout_key)
    if hardest is None and not leave_out and len(negatives) == len(batch.items):
        items = jnp.concatenate([batch.items.astype(negatives.dtype), negatives], axis=1)
        # One call for both sides: each call of LightGCN propagates its whole graph.
        scores = model.apply(variables, batch.users, items, **options)
        pos, neg = jnp.split(scores, [batch.items.shape[1]], axis=1)
    else:
        pos = model.apply(variables, batch.users, batch.items, **options)
        if leave_out:
            if batch.items.shape[1] > 1:
                raise ValueError("leave_out=True is for single positives; call fit with examples=singles")
            options["left_out"] = batch.items
        if hardest is not None:
            pool = jax.lax.stop_gradient(model.apply(variables, batch.users, negatives, **options))
            negatives = sampling.hardest(pool, negatives, n=hardest)
        neg = model.apply(variables, batch.users, negatives, **options)
    further = {} if arguments is None else arguments(variables, batch, negatives)
    values = compared(loss, pos, neg[:, None, :], **further)
    return losses.mean(values, where=batch.where, weights=batch.weights)


def log_q(variables: Variables, batch: Batch, negatives: Array, *, table: Array) -> dict[str, Any]:
    """Returns the sampler's log-probabilities, as the `arguments` of `losses.sampled_softmax`.

    Args:
        variables: unused.
        batch: positives [B, P].
        negatives: ids [B, n], or [1, n].
        table: the sampler's log-probabilities [N], such as
            `sampling.popularity_table(train).log_q`.
    """
    del variables
    return {"log_q_pos": table[batch.items], "log_q_neg": table[negatives][:, None]}


def in_batch_objective(
    variables: Variables,
    key: Key,
    batch: Batch,
    *,
    model: Model,
    loss: Loss,
    seen: Interactions | None = None,
    log_q: Array | None = None,
) -> jax.Array:
    """Computes the mean loss of the batch's positives, each against all other items of the batch.

    Scores are one matrix product instead of look-ups. Items occur as negatives in proportion to
    their popularity, which `losses.sampled_softmax` corrects with `log_q`.

    Args:
        variables: the model's variables, as returned by `model.init`.
        key: typed key, used only for dropout.
        batch: positives [B, P], taken one by one: R = B · P.
        model: a model that scores pairs by `model.apply(variables, users, items)`, with
            `histories=` if it needs them.
        loss: a loss of `jaxrec.losses` that compares positives [R] with negatives [R, R].
        seen: interactions whose items are not used as negatives of their users. If None, only the
            positive itself is not a negative.
        log_q: log-probabilities [N], such as `sampling.popularity_table(train).log_q`.
    """
    pairs, options = batch.pairs(), _options(model, batch, key)
    where = sampling.in_batch(pairs.users, pairs.items, seen=seen) & pairs.where[None]
    pos = model.apply(variables, batch.users, batch.items, **options).reshape(-1)
    neg = model.apply(variables, batch.users, pairs.items[None], **options)
    neg = jnp.repeat(neg, batch.items.shape[1], axis=0)  # once for all positives of a user
    further = {} if log_q is None else {"log_q_pos": log_q[pairs.items], "log_q_neg": log_q[pairs.items][None, :]}
    values = compared(loss, pos, neg, where=where, **further)
    return losses.mean(values, where=pairs.where, weights=pairs.weights)


def rows_objective(variables: Variables, key: Key, batch: Batch, *, model: Model, loss: Loss) -> jax.Array:
    """Computes the mean loss of the batch's positives, each against the whole catalogue.

    The catalogue includes the positives, as uniform sampling does: this is the limit of
    `pairwise_objective` with `sampling.uniform` for many negatives. With `losses.mine` it is the
    full softmax. Use `examples=groups`: a row of scores [N] then serves P positives.

    Args:
        variables: the model's variables, as returned by `model.init`.
        key: unused; nothing is drawn.
        batch: positives [B, P].
        model: a model that scores all items by `model.apply(variables, users, method="rows")`, with
            `histories=` if it needs them.
        loss: a loss of `jaxrec.losses` that compares positives with negatives.
    """
    del key
    scores = model.apply(variables, batch.users[:, 0], method="rows", **histories_of(model, batch))
    values = compared(loss, jnp.take_along_axis(scores, batch.items, axis=1), scores[:, None, :])
    return losses.mean(values, where=batch.where, weights=batch.weights)


def vectors_objective(
    variables: Variables, key: Key, batch: Batch, *, model: Model, loss: Callable[..., Array]
) -> jax.Array:
    """Computes a loss of the batch's vectors without negatives, such as `losses.directau`.

    Args:
        variables: the model's variables, as returned by `model.init`.
        key: unused; nothing is drawn.
        batch: positives [B, P], taken one by one: R = B · P.
        model: a model that returns tables by `model.apply(variables, method="vectors")`.
        loss: `losses.directau`, or any function of users [R, D], items [R, D] and `where` [R].

    Raises:
        TypeError: if the model has no `vectors`, or `loss` is not a function.
    """
    del key
    check_function("loss", loss, "jaxrec.losses.directau")
    pairs = batch.pairs()
    _check_has(model, "vectors", "MF")
    users, items = model.apply(variables, method="vectors")
    return loss(users[pairs.users], items[pairs.items], where=pairs.where)


def gram_objective(
    variables: Variables, key: Key, batch: Batch, *, model: Model, loss: Callable[..., Array] = losses.rg2
) -> jax.Array:
    """Computes the mean loss of the positives against the whole catalogue, from its Gram matrix.

    It equals `rows_objective` with `losses.rg2_sampled`, but never forms scores [B, N]: a step
    takes 2NK² operations for any batch size, with K-dimensional vectors. Scores are those of the
    tables: there is no dropout.

    Args:
        variables: the model's variables, as returned by `model.init`.
        key: unused; nothing is drawn.
        batch: positives [B, P].
        model: a model that returns tables by `model.apply(variables, method="vectors")`.
        loss: `losses.rg2`, or any function of positives' scores [...], users' vectors [..., K], QᵀQ
            [K, K], Qᵀ1 [K], `n_items` and `where` [...], where Q are the items' vectors.

    Raises:
        TypeError: if the model has no `vectors`, or `loss` is not a function.
    """
    del key
    check_function("loss", loss, "jaxrec.losses.rg2")
    _check_has(model, "vectors", "MF")
    users, items = model.apply(variables, method="vectors")
    gram = jnp.matmul(items.T, items, precision="highest")
    own = users[batch.users]
    pos = (own * items[batch.items]).sum(-1)
    values = loss(pos, own, gram, items.sum(0), n_items=len(items), where=batch.where)
    return losses.mean(values, where=batch.where, weights=batch.weights)


def combined_objective(
    variables: Variables, key: Key, batch: Batch, *, parts: Sequence[tuple[Scalar, Objective]]
) -> jax.Array:
    """Computes a weighted sum of objectives, Σ weight · objective(variables, key, batch).

    To add losses of the same scores, use `losses.combine`, which scores them once.

    Args:
        variables: the model's variables, as returned by `model.init`.
        key: typed key; each part gets the same one.
        batch: the batch, as the parts take it.
        parts: pairs (weight, objective); weights may be traced.

    Raises:
        TypeError: if a part is not a pair of a weight and an objective.
        ValueError: if there are no parts.
    """
    check_parts(parts, "objective")
    return jnp.asarray(sum(jnp.asarray(weight * objective(variables, key, batch)) for weight, objective in parts))


def histories_of(model: Model, batch: Batch) -> dict[str, Interactions]:
    """Returns the keyword `histories` of `model.apply` for a model that knows users by their items.

    For other models the result is empty.

    Raises:
        ValueError: for a batch without histories if the model needs them.
    """
    if not getattr(model, "needs_histories", False):
        return {}
    if batch.histories is None:
        raise ValueError(
            f"{type(model).__name__} knows users by their items, and the batch has no histories; call fit with "
            "examples=partial(train.singles, histories=...), the Interactions that the model may see"
        )
    return {"histories": batch.histories}


def _options(model: Model, batch: Batch, key: Key) -> dict[str, Any]:
    """Returns keywords of `model.apply`: histories and a key for dropout, if the model takes them.

    Any Linen module takes the key; others need an attribute `dropout` above 0.
    """
    rngs = {"rngs": {"dropout": key}} if getattr(model, "dropout", 0) or hasattr(model, "setup") else {}
    return histories_of(model, batch) | rngs


def compared(loss: Callable[..., Array], pos: Array, neg: Array, **further: Array) -> jax.Array:
    """Returns `loss(pos, neg, **further)` [...], and checks that it has one value per positive.

    A loss that forgets `pos[..., None]` compares every positive with the negatives of all users.
    With one negative, or as many as positives, its result still has the right shape. The loss is
    then traced a second time, with sizes that do not broadcast against each other.

    Raises:
        TypeError: if the loss is not a function, or does not return floats.
        ValueError: if the loss returns another shape.
    """
    check_function("loss", loss, "jaxrec.losses.bpr")
    values = loss(pos, neg, **further)
    if not jnp.issubdtype(getattr(values, "dtype", None) or object, jnp.floating):
        what = getattr(values, "dtype", type(values).__name__)
        raise TypeError(f"the loss returns {what}; it must return an array of floats, to have a gradient")
    tried: list[tuple[Any, ...]] = [
        (pos, neg, jnp.shape(values) == jnp.shape(pos), f"returns {list(jnp.shape(values))}")
    ]
    n = neg.shape[-1]
    if n == 1 or n in pos.shape:
        sizes = [size for size in (7, 11, 13, 17) if size != n][: pos.ndim]
        unlike = functools.partial(_unlike, pos=pos, neg=neg, sizes=sizes, n=5 if n == 1 else n)
        probe = jax.ShapeDtypeStruct(sizes, pos.dtype), unlike(neg)
        arrays = {name: x for name, x in further.items() if isinstance(x, jax.Array | np.ndarray)}
        fixed = functools.partial(loss, **{name: x for name, x in further.items() if name not in arrays})
        try:  # a new lambda, as `eval_shape` caches its traces by function
            found = jax.eval_shape(lambda *a, **k: fixed(*a, **k), *probe, **jax.tree.map(unlike, arrays)).shape
            tried.append((*probe, found == probe[0].shape, f"returns {list(found)}"))
        except (TypeError, ValueError) as error:
            broadcasts = re.search("broadcast|incompatible shapes|rank_promotion", str(error), re.IGNORECASE)
            if broadcasts:  # other errors come from losses written for one number of negatives
                tried.append((*probe, False, f"fails ({str(error).splitlines()[0]})"))
    if not all(right for _, _, right, _ in tried):
        what = "; ".join(f"pos {list(p.shape)} and neg {list(n.shape)} {how}" for p, n, _, how in tried)
        raise ValueError(
            f"the loss has the wrong shape: with {what}. A loss takes pos [...] and neg [..., n] and "
            "returns [...]: compare neg with pos[..., None], and reduce only the last axis"
        )
    return values


def _unlike(x: Array, *, pos: Array, neg: Array, sizes: Sequence[int], n: int) -> jax.ShapeDtypeStruct:
    """Returns an argument's shape for positives of shape `sizes` with n negatives each."""
    shape = list(jnp.shape(x))
    if len(shape) >= neg.ndim and shape[neg.ndim - 1] == neg.shape[-1]:
        shape[neg.ndim - 1] = n
    if len(shape) >= pos.ndim:
        same = zip(shape, pos.shape, sizes)
        shape[: pos.ndim] = [other if own == its and own > 1 else own for own, its, other in same]
    return jax.ShapeDtypeStruct(tuple(shape), jnp.result_type(x))


def _check_has(model: Model, method: str, such_as: str) -> None:
    """Raises `TypeError` for a Linen module without the method that an objective calls.

    Other models are not checked: they only need `apply`.
    """
    if hasattr(model, "setup") and not hasattr(model, method):
        raise TypeError(
            f"model is {type(model).__name__}, which has no {method!r}; give one that has, such as {such_as}"
        )
