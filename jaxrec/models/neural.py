"""NeuMF: a product of vectors next to a perceptron of other vectors."""

from __future__ import annotations

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec._lookup import lookup
from jaxrec._numerics import as_integer
from jaxrec.models.mf import against_all, check_attributes, check_numbers, check_sizes
from jaxrec.typing import Array


class NeuMF(nn.Module):
    """Neural collaborative filtering (He et al. 2017, arXiv 1708.05031): factorisation and an MLP.

    score = w·[p ⊙ q, h_L] + b,   h_l = relu(W_l h_{l−1} + b_l),   h_0 = [p', q']

    The score is the logit. The paper trains with `losses.bce`, `negatives="sum"`, and 4 negatives.
    There is no `vectors`, because no dot product of tables gives the same ranking.

    The parameters are `user` [M, D] (p) and `item` [N, D] (q); `user_mlp` [M, H/2] (p') and
    `item_mlp` [N, H/2] (q'), where H is the first of the layers; `kernel_l` and `bias_l` of each
    later layer; `output` and `output_bias`.

    Attributes:
        n_users: M.
        n_items: N.
        dim: D, size of the product.
        layers: sizes of h_0 .. h_L, two or more, the first even.
        scale: standard deviation of the initial vectors. Matrices are initialised by Glorot's rule,
            the output by LeCun's, both uniform; biases start at 0.

    Raises:
        ValueError: if a size is not an integer of 1 or more, there are fewer than two layers, the
            first layer is odd, or `scale` is negative or not finite.

    Differs: the paper's better results start from the parameters of a GMF and an MLP that were
    trained separately, with their output weights halved; here nothing is pretrained. The released
    code averages the cross-entropy over positives and negatives alike, which is the sum here
    divided by 1 + n.

    >>> model = NeuMF(3, 5, dim=2, layers=(4, 2))
    >>> variables = model.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))
    >>> model.apply(variables, jnp.array([0, 2]), method="rows").shape
    (2, 5)
    """

    n_users: int
    n_items: int
    dim: int = 8
    layers: tuple[int, ...] = (64, 32, 16, 8)
    scale: float = 0.01

    def __post_init__(self) -> None:
        layers = [as_integer(size) or 0 for size in self.layers]
        if len(layers) < 2 or min(layers) < 1 or layers[0] % 2:
            raise ValueError(f"layers={self.layers}; give two or more integers of at least 1, the first even")
        self.layers = tuple(layers)
        check_sizes(self, "n_users", "n_items", "dim")
        check_numbers(self, "scale", least=0)
        check_attributes(self)
        super().__post_init__()

    def setup(self) -> None:  # noqa: D102
        normal, zeros = nn.initializers.normal(self.scale), nn.initializers.zeros
        half = self.layers[0] // 2
        self.user = self.param("user", normal, (self.n_users, self.dim))
        self.item = self.param("item", normal, (self.n_items, self.dim))
        self.user_mlp = self.param("user_mlp", normal, (self.n_users, half))
        self.item_mlp = self.param("item_mlp", normal, (self.n_items, half))
        glorot = nn.initializers.glorot_uniform()
        self.tower = [
            (self.param(f"kernel_{level}", glorot, sizes), self.param(f"bias_{level}", zeros, sizes[1:]))
            for level, sizes in enumerate(zip(self.layers, self.layers[1:]), start=1)
        ]
        self.output = self.param("output", nn.initializers.lecun_uniform(), (self.dim + self.layers[-1], 1))
        self.output_bias = self.param("output_bias", zeros, (1,))

    def __call__(self, users: Array, items: Array) -> jax.Array:
        """Scores pairs of ids that broadcast, such as users [B, 1] and items [B, n] -> [B, n]."""
        chex.assert_type([users, items], int)
        return self._score(
            (lookup(self.user, users), lookup(self.user_mlp, users)),
            (lookup(self.item, items), lookup(self.item_mlp, items)),
        )

    def rows(self, users: Array) -> jax.Array:
        """Scores all items for users [B] -> [B, N]."""
        own = lookup(self.user, users), lookup(self.user_mlp, users)
        items = jnp.asarray(self.item), jnp.asarray(self.item_mlp)
        return against_all(self._score, own, items, width=self.dim + sum(self.layers[1:]))

    def _score(self, users: tuple[Array, Array], items: tuple[Array, Array]) -> jax.Array:
        """Returns logits from rows (p, p') of users and (q, q') of items that broadcast."""
        (p, p_mlp), (q, q_mlp) = users, items
        half = self.layers[0] // 2
        (kernel, bias), *tower = self.tower
        # W₁ [p', q'] as a sum of two parts: each side is mapped once, before the sides broadcast.
        hidden = jax.nn.relu(_dense(p_mlp, kernel[:half], bias) + q_mlp @ kernel[half:])
        for kernel, bias in tower:
            hidden = jax.nn.relu(_dense(hidden, kernel, bias))
        logits = (p * q) @ self.output[: self.dim] + _dense(hidden, self.output[self.dim :], self.output_bias)
        return logits[..., 0]


def _dense(x: Array, kernel: Array, bias: Any) -> jax.Array:
    return x @ kernel + bias.reshape((1,) * (x.ndim - 1) + (-1,))
