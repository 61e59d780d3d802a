"""What a step minimises: positives of a batch against negatives, as one scalar of (variables, key, batch).

Bind model, loss and sampler by `functools.partial`. A batch holds up to P positives of each user, `items` [B, P]; the
negatives of a user are drawn and scored once for all of them. A model that knows users by their items, such as
`models.SimpleX`, gets the histories of the batch: call `fit` with `examples=partial(train.singles, histories=...)`.
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
from jaxrec.interactions import Interactions
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
) -> Array:
    """Mean loss of the batch's positives against sampled negatives.

    Weights of the interactions weigh the mean. A model with `dropout` above 0 gets a key for it.

    Args:
        variables: the model's variables, as `model.init` returns them.
        key: for the negatives.
        batch: positives [B, P].
        model: scores pairs by `model.apply(variables, users, items)`, with `histories=` if it needs them.
        loss: any of `jaxrec.losses` that compares positives with negatives.
        sample: any of `jaxrec.sampling`; [B, n] negatives, or [1, n] that the batch shares.
        hardest: if given, only the so many highest-scored negatives of each row count (Zhang et al. 2013,
            10.1145/2484028.2484126): the sampler's draw is the pool, and gradients flow through the few alone.
        arguments: function of (variables, batch, negatives) that gives further keyword arguments of the loss, such as
            `partial(log_q, table=...)` for `losses.sampled_softmax`.
        leave_out: hand the positives to the model as `left_out`, so that `models.SimpleX` leaves them out of the
            history for the negatives too, as its released code does.

    Raises:
        ValueError: for `leave_out` with groups, `hardest` above the size of the pool, a loss that does not give one
            value a positive, and a model that needs histories if the batch has none.
    """
    sample_key, dropout_key = jax.random.split(key)
    negatives = sample(sample_key, batch.users[:, 0])
    options = _options(model, batch, dropout_key)
    if hardest is None and not leave_out and len(negatives) == len(batch.items):
        items = jnp.concatenate([batch.items.astype(negatives.dtype), negatives], axis=1)
        scores = model.apply(variables, batch.users, items, **options)  # once: LightGCN goes over its whole graph
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


def log_q(variables: Variables, batch: Batch, negatives: Array, *, table: Array) -> dict[str, Array]:
    """`arguments` of `losses.sampled_softmax`: the sampler's log-probabilities, `table` [N], of both sides."""
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
) -> Array:
    """Mean loss of the batch's positives, each against all other items of the batch (one product instead of gathers).

    An item comes as negative in proportion to its popularity. `losses.sampled_softmax` corrects that with `log_q`.

    Args:
        variables: the model's variables, as `model.init` returns them.
        key: for dropout alone.
        batch: positives [B, P], taken one by one: R = B · P.
        model: scores pairs by `model.apply(variables, users, items)`, with `histories=` if it needs them.
        loss: any of `jaxrec.losses` that compares positives [R] with negatives [R, R].
        seen: if given, items that the user has in it are no negatives; else only the positive itself is none.
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


def rows_objective(variables: Variables, key: Key, batch: Batch, *, model: Model, loss: Loss) -> Array:
    """Mean loss of the batch's positives, each against the whole catalogue: nothing is sampled.

    The catalogue holds the positives too, as a uniform draw does, so that this is what `pairwise_objective` with
    `sampling.uniform` tends to for many negatives. The full softmax is `losses.mine`. Best with `examples=groups`: a
    row of scores [N] then serves P positives.

    Args:
        variables: the model's variables, as `model.init` returns them.
        key: unused; nothing is drawn.
        batch: positives [B, P].
        model: scores all items by `model.apply(variables, users, method="rows")`, with `histories=` if it needs them.
        loss: any of `jaxrec.losses` that compares positives with negatives.
    """
    del key
    scores = model.apply(variables, batch.users[:, 0], method="rows", **histories_of(model, batch))
    values = compared(loss, jnp.take_along_axis(scores, batch.items, axis=1), scores[:, None, :])
    return losses.mean(values, where=batch.where, weights=batch.weights)


def vectors_objective(
    variables: Variables, key: Key, batch: Batch, *, model: Model, loss: Callable[..., Array]
) -> Array:
    """A loss of the batch's vectors, such as `losses.directau`: no negatives.

    Args:
        variables: the model's variables, as `model.init` returns them.
        key: unused; nothing is drawn.
        batch: positives [B, P], taken one by one: R = B · P.
        model: gives tables by `model.apply(variables, method="vectors")`.
        loss: `losses.directau`, or any function of users [R, D], items [R, D] and `where` [R].

    Raises:
        TypeError: for a model without `vectors`.
    """
    del key
    batch = batch.pairs()
    _check_has(model, "vectors", "MF")
    users, items = model.apply(variables, method="vectors")
    return loss(users[batch.users], items[batch.items], where=batch.where)


def gram_objective(
    variables: Variables, key: Key, batch: Batch, *, model: Model, loss: Callable[..., Array] = losses.rg2
) -> Array:
    """Mean loss of the batch's positives against the whole catalogue by its Gram matrix: no scores [B, N] are formed.

    The same as `rows_objective` with `losses.rg2_sampled`, for 2NK² operations a step whatever the batch.
    Scores are those of the tables: nothing is dropped.

    Args:
        variables: the model's variables, as `model.init` returns them.
        key: unused; nothing is drawn.
        batch: positives [B, P].
        model: gives tables by `model.apply(variables, method="vectors")`.
        loss: `losses.rg2`, or any function of positives [...], users [..., K], QᵀQ [K, K], Qᵀ1 [K], `n_items` and
            `where` [...].

    Raises:
        TypeError: for a model without `vectors`.
    """
    del key
    _check_has(model, "vectors", "MF")
    users, items = model.apply(variables, method="vectors")
    gram = jnp.matmul(items.T, items, precision="highest")
    own = users[batch.users]
    pos = (own * items[batch.items]).sum(-1)
    values = loss(pos, own, gram, items.sum(0), n_items=len(items), where=batch.where)
    return losses.mean(values, where=batch.where, weights=batch.weights)


def combined_objective(
    variables: Variables, key: Key, batch: Batch, *, parts: Sequence[tuple[Scalar, Objective]]
) -> Array:
    """Weighted sum of objectives: Σ weight · objective(variables, key, batch), such as a loss and a regulariser.

    For a sum of losses of the same scores, `losses.combine` scores them once.

    Args:
        variables: the model's variables, as `model.init` returns them.
        key: each part gets the same one.
        batch: as the parts take it.
        parts: pairs (weight, objective); weights may be traced.

    Raises:
        ValueError: for no parts.
    """
    if not parts:
        raise ValueError("parts is empty; give at least one pair (weight, objective)")
    return sum(weight * objective(variables, key, batch) for weight, objective in parts)


def histories_of(model: Model, batch: Batch) -> dict[str, Interactions]:
    """The keyword `histories` for `model.apply` if the model knows users by their items; other models do not take it.

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
    """Keywords for `model.apply` on pairs of a batch: histories, and a key for dropout, if the model takes them."""
    rngs = {"rngs": {"dropout": key}} if getattr(model, "dropout", 0) else {}
    return histories_of(model, batch) | rngs


def compared(loss: Loss, pos: Array, neg: Array, **further: Array) -> Array:
    """`loss(pos, neg, **further)` [...], known to be a value a positive for any numbers of positives and negatives.

    A loss that forgets `pos[..., None]` compares every positive with every user's negatives. With one negative, or as
    many as positives, the shape of its result is right all the same. So its shapes are traced a second time, with sizes
    that do not broadcast against each other.

    Raises:
        TypeError: for a loss that is no function, or does not give floats.
        ValueError: for a loss of another shape.
    """
    if not callable(loss):
        raise TypeError(f"loss={loss!r:.80}; give a function, such as jaxrec.losses.bpr")
    values = loss(pos, neg, **further)
    if not jnp.issubdtype(getattr(values, "dtype", None) or object, jnp.floating):
        what = getattr(values, "dtype", type(values).__name__)
        raise TypeError(f"the loss gives {what}; return an array of floats, which alone have a gradient")
    tried = [(pos, neg, jnp.shape(values) == jnp.shape(pos), f"gives {list(jnp.shape(values))}")]
    n = neg.shape[-1]
    if n == 1 or n in pos.shape:
        sizes = [size for size in (7, 11, 13, 17) if size != n][: pos.ndim]
        unlike = functools.partial(_unlike, pos=pos, neg=neg, sizes=sizes, n=5 if n == 1 else n)
        probe = jax.ShapeDtypeStruct(sizes, pos.dtype), unlike(neg)
        arrays = {name: x for name, x in further.items() if isinstance(x, jax.Array | np.ndarray)}
        fixed = functools.partial(loss, **{name: x for name, x in further.items() if name not in arrays})
        try:  # a function of its own, as JAX keeps what it has traced by the function
            found = jax.eval_shape(lambda *a, **k: fixed(*a, **k), *probe, **jax.tree.map(unlike, arrays)).shape
            tried.append((*probe, found == probe[0].shape, f"gives {list(found)}"))
        except (TypeError, ValueError) as error:
            broadcasts = re.search("broadcast|incompatible shapes|rank_promotion", str(error), re.IGNORECASE)
            if broadcasts:  # any other error is of a loss that is made for this number of negatives
                tried.append((*probe, False, f"fails ({str(error).splitlines()[0]})"))
    if not all(right for _, _, right, _ in tried):
        what = "; ".join(f"pos {list(p.shape)} and neg {list(n.shape)} {how}" for p, n, _, how in tried)
        raise ValueError(
            f"the loss has the wrong shape: with {what}. It takes pos [...] and neg [..., n] and gives [...]: compare "
            "neg with pos[..., None], and reduce the last axis alone"
        )
    return values


def _unlike(x: Array, *, pos: Array, neg: Array, sizes: Sequence[int], n: int) -> jax.ShapeDtypeStruct:
    """The shape of a loss's argument if positives had the shape `sizes`, each against n negatives."""
    shape = list(jnp.shape(x))
    if len(shape) >= neg.ndim and shape[neg.ndim - 1] == neg.shape[-1]:
        shape[neg.ndim - 1] = n
    if len(shape) >= pos.ndim:
        same = zip(shape, pos.shape, sizes)
        shape[: pos.ndim] = [other if own == its and own > 1 else own for own, its, other in same]
    return jax.ShapeDtypeStruct(tuple(shape), jnp.result_type(x))


def _check_has(model: Model, method: str, such_as: str) -> None:
    """`TypeError` for a Linen module without the method that an objective calls; others answer by `apply` alone."""
    if hasattr(model, "setup") and not hasattr(model, method):
        raise TypeError(
            f"model is {type(model).__name__}, which has no {method!r}; give one that has, such as {such_as}"
        )
