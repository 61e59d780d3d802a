"""LightGCN with views of its vectors that a contrastive loss pulls towards each other.

`SimGCL` and `XSimGCL` are trained by `train.contrastive_objective`, which gives them their noise
and a key for it. Scores, `rows` and `vectors` are without noise. `NCL` is trained by `train.ncl`.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from jaxrec._keys import drawn
from jaxrec._numerics import integer
from jaxrec.models.graph import LightGCN, Tables, mean_of
from jaxrec.models.mf import check_sizes, cosine
from jaxrec.typing import Array, Scalar


class SimGCL(LightGCN):
    """SimGCL (Yu et al. 2022, arXiv 2112.08679): views of LightGCN's vectors by random noise.

    E⁽ᵏ⁺¹⁾ = A E⁽ᵏ⁾ + ε sign(A E⁽ᵏ⁾) ⊙ U / ‖U‖,   view = mean of E⁽¹⁾ .. E⁽ᴸ⁾

    A is LightGCN's normalised graph, and each row of U is drawn uniformly from [0, 1)ᴰ. The vectors
    of the score are the mean of A E⁽⁰⁾ .. Aᴸ E⁽⁰⁾, without noise; unlike LightGCN's, they leave out
    E⁽⁰⁾. A user or item without interactions therefore has a vector of zeros.

    `train.contrastive_objective` propagates three times per step: for the score and for two views.
    The paper's settings for Yelp2018 are noise .1, weight .5, temperature .2, L = 3, a penalty of
    1e-4, Adam with rate 1e-3 and batches of 2,048.

    The parameters and the graph are those of `LightGCN`.

    Attributes:
        graph: the training interactions; weights are not used.
        dim: D.
        layers: L, 1 or more.
        scale: standard deviation of the initial vectors.

    Raises:
        ValueError: if `dim` or `layers` is not an integer of 1 or more, or `scale` is negative
            or not finite.

    Differs: the released code draws E⁽⁰⁾ from Xavier's uniform distribution, whose standard
    deviations on Yelp2018 and Gowalla lie between .0070 and .0082; ours is normal with the same
    `scale` for all sizes. It penalises the batch's propagated vectors instead of its rows of E⁽⁰⁾.

    >>> from jaxrec import Interactions
    >>> model = SimGCL(Interactions.from_pairs([0, 0, 2], [1, 3, 0]), dim=2)
    >>> variables = model.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))
    >>> _, first, second = model.apply(variables, 0.1, method="views", rngs={"noise": jax.random.key(1)})
    >>> [table.shape for table in (*first, *second)]
    [(3, 2), (4, 2), (3, 2), (4, 2)]
    """

    scale: float = 0.0075

    def __post_init__(self) -> None:
        check_sizes(self, "layers")
        super().__post_init__()

    def vectors(self) -> Tables:
        """Returns the means of the layers 1 to L, [M, D] and [N, D], which the score multiplies."""
        return mean_of(self._layers()[1:])

    def views(self, noise: Scalar) -> tuple[Tables, Tables, Tables]:
        """Returns the tables that training scores with, and two views of them.

        Each is a pair of tables [M, D] and [N, D].

        Args:
            noise: ε, the length of the noise; may be traced. It is drawn with the key of
                `apply(..., rngs={"noise": key})`.
        """
        first, second = (mean_of(self._layers(partial(self._disturbed, noise))[1:]) for _ in range(2))
        return self.vectors(), first, second

    def _disturbed(self, noise: Scalar, x: Array) -> jax.Array:
        """Adds noise of length ε to each row, in the direction of the signs of its entries."""
        draws = drawn(jax.random.uniform, self.make_rng("noise"), x.shape, x.dtype)
        unit, _ = cosine(draws, draws)
        return x + jnp.asarray(noise, x.dtype) * jnp.sign(x) * unit


class XSimGCL(SimGCL):
    """XSimGCL (Yu et al. 2023, arXiv 2209.02544): SimGCL with one noisy pass, for score and views.

    The vectors of the training score are the mean of E⁽¹⁾ .. E⁽ᴸ⁾ with noise, and E⁽ˡ⁾ of one layer
    l is the view with which they are contrasted. Scores of `apply`, `rows` and `vectors` have no
    noise. A step propagates once, as LightGCN does.

    The paper's settings for Yelp2018 are noise .2, l = 1, L = 3, weight .2, temperature .15, a
    penalty of 1e-4, Adam with rate 1e-3 and batches of 2,048; the released configuration has 20 epochs.

    The parameters and the graph are those of `LightGCN`.

    Attributes:
        graph: the training interactions; weights are not used.
        dim: D.
        layers: L, 1 or more.
        scale: standard deviation of the initial vectors.
        contrast: l, the layer with which the mean is contrasted, from 1 to L.

    Raises:
        ValueError: if `dim` or `layers` is not an integer of 1 or more, `contrast` is not one from
            1 to L, or `scale` is negative or not finite.

    Differs: as for `SimGCL`.

    >>> from jaxrec import Interactions
    >>> model = XSimGCL(Interactions.from_pairs([0, 0, 2], [1, 3, 0]), dim=2)
    >>> variables = model.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))
    >>> tables, first, _ = model.apply(variables, 0.1, method="views", rngs={"noise": jax.random.key(1)})
    >>> tables is first
    True
    """

    contrast: int = 1

    def __post_init__(self) -> None:
        check_sizes(self, "layers", "contrast")
        integer("contrast", self.contrast, most=self.layers)
        super().__post_init__()

    def views(self, noise: Scalar) -> tuple[Tables, Tables, Tables]:
        """Returns the tables that training scores with, and two views; the first equals the tables.

        Each is a pair of tables [M, D] and [N, D]; `noise` is that of `SimGCL.views`.
        """
        layers = self._layers(partial(self._disturbed, noise))[1:]
        tables = mean_of(layers)
        return tables, tables, layers[self.contrast - 1]


class NCL(LightGCN):
    """NCL (Lin et al. 2022, arXiv 2202.06200): LightGCN whose layers and clusters are contrasted.

    Scores are those of `LightGCN`. Training brings E⁽²ᵏ⁾ of a user or item, which comes from others
    of its kind, close to its E⁽⁰⁾, and E⁽⁰⁾ close to the centroid of its cluster; see
    `train.ncl.objective`. The clusters are the untrained collection "prototypes": centroids "user"
    and "item" [C, D], and the clusters "of_user" [M] and "of_item" [N]. They are zeros until
    `train.ncl.prototypes` has computed them, which `train.refreshed` does between epochs.

    The paper's settings for Yelp2018 are 2,000 clusters, k = 1, L = 3, and those of
    `train.ncl.objective`.

    The parameters and the graph are those of `LightGCN`.

    Attributes:
        graph: the training interactions; weights are not used.
        dim: D.
        layers: L, 2k or more.
        scale: standard deviation of the initial vectors.
        clusters: C, the number of clusters of users and of items.
        hops: k; E⁽²ᵏ⁾ is contrasted with E⁽⁰⁾.

    Raises:
        ValueError: if a size is not an integer of 1 or more, there are fewer layers than 2k, there
            are more clusters than users or items, or `scale` is negative or not finite.

    Differs: initial values are as for `SimGCL`.

    >>> from jaxrec import Interactions
    >>> model = NCL(Interactions.from_pairs([0, 0, 2], [1, 3, 0]), dim=2, clusters=2)
    >>> variables = model.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))
    >>> variables["prototypes"]["user"].shape, variables["prototypes"]["of_item"].shape
    ((2, 2), (4,))
    """

    scale: float = 0.0075
    clusters: int = 1000
    hops: int = 1

    def __post_init__(self) -> None:
        check_sizes(self, "layers", "clusters", "hops")
        super().__post_init__()
        integer("hops", self.hops, most=self.layers // 2)
        integer("clusters", self.clusters, most=min(self.n_users, self.n_items))

    def setup(self) -> None:  # noqa: D102
        super().setup()
        self.variable("prototypes", "user", jnp.zeros, (self.clusters, self.dim))
        self.variable("prototypes", "item", jnp.zeros, (self.clusters, self.dim))
        self.variable("prototypes", "of_user", jnp.zeros, self.n_users, jnp.int32)
        self.variable("prototypes", "of_item", jnp.zeros, self.n_items, jnp.int32)

    def neighbourhoods(self) -> tuple[Tables, Tables, Tables]:
        """Returns the tables of the score, E⁽⁰⁾ and E⁽²ᵏ⁾, [M, D] and [N, D] each."""
        layers = self._layers()
        return mean_of(layers), layers[0], layers[2 * self.hops]
