"""Examples that stay on the host, and come to the device in blocks while the block before trains.

`fit(..., examples=streamed)` trains on positives that do not fit the memory of the device, or, if
`Interactions.open` maps them into memory, that of the host. `fit` takes your own streams too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from jaxrec._keys import generator
from jaxrec._mesh import on_mesh
from jaxrec._numerics import integer
from jaxrec._pairs import MOST
from jaxrec.interactions import Interactions, check_positives
from jaxrec.train.examples import Examples, Groups
from jaxrec.typing import Array, Key


class Stream(Protocol):
    """What `fit` needs of examples that come in blocks.

    Attributes:
        n_blocks: number of blocks of an epoch.
    """

    n_blocks: int

    def blocks(self, key: Key, epoch: Array) -> Iterator[Examples] | Sequence[Examples]:
        """Returns the blocks of an epoch, which have the same structure and shapes.

        Args:
            key: the run's typed key.
            epoch: int32 [], number of epochs done.
        """


class Resident(NamedTuple):
    """Examples that stay on the device: a stream of one block."""

    data: Examples
    n_blocks: int = 1

    def blocks(self, key: Key, epoch: Array) -> Sequence[Examples]:
        """Returns the one block."""
        del key, epoch
        return (self.data,)


def as_stream(data: Any, mesh: Mesh | None = None) -> Stream:
    """Returns a stream unchanged, and other examples as one block on the device or the mesh."""
    return data if hasattr(data, "n_blocks") else Resident(on_mesh(data, mesh))


@dataclasses.dataclass(frozen=True, eq=False)
class Streamed:
    """The positives one by one, in blocks read from the host; see `streamed`.

    Attributes:
        train: the positives.
        n_blocks: number of blocks of an epoch.
        chunk: number of consecutive pairs that stay in one block.
    """

    train: Interactions
    n_blocks: int
    chunk: int

    def blocks(self, key: Key, epoch: Array) -> Iterator[Groups]:
        """Yields the blocks of an epoch; see `Stream`."""
        n, chunk = self.train.n_pairs, self.chunk
        n_chunks = -(-n // chunk)
        kind = np.int32 if n_chunks <= MOST else np.int64
        order = generator(jax.random.fold_in(key, epoch)).permutation(np.arange(n_chunks, dtype=kind))
        # The chunks are laid out in this order. The last chunk of the set, at `short`, may lack pairs.
        short, lacking = int(np.argmax(order)), n_chunks * chunk - n

        def chunk_of(place: int) -> int:
            return (place + lacking * (place >= (short + 1) * chunk - lacking)) // chunk

        for number in range(self.n_blocks):
            # The sizes of blocks differ by at most one pair, so that at most one example is padding.
            first, end = n * number // self.n_blocks, n * (number + 1) // self.n_blocks
            chunks = np.arange(chunk_of(first), chunk_of(end - 1) + 1)
            ends = (chunks + 1) * chunk - lacking * (chunks >= short)
            stops = np.minimum((order[chunks].astype(np.int64) + 1) * chunk, n)
            lengths = np.diff(np.minimum(ends, end), prepend=first)
            stops -= np.maximum(ends - end, 0)  # the last chunk continues in the next block
            yield self._block(np.sort(np.stack([stops - lengths, stops], axis=1), axis=0))

    def _block(self, spans: np.ndarray) -> Groups:
        """Returns the pairs of ascending spans [·, 2] of places, padded to the size of a block."""
        train, size = self.train, -(-self.train.n_pairs // self.n_blocks)
        lengths = spans[:, 1] - spans[:, 0]
        places = np.arange(lengths.sum()) + np.repeat(spans[:, 1] - np.cumsum(lengths), lengths)
        # Places of the dtype of `indptr`: a search among values of another dtype copies them all.
        users = np.searchsorted(train.indptr, places.astype(train.indptr.dtype), "right") - 1
        columns = (
            users.astype(np.int32),
            train.indices[places],
            None if train.weights is None else train.weights[places],
        )
        padded: list[Any] = [None if x is None else np.pad(x, (0, size - len(x))) for x in columns]
        users, items, weights = padded
        return Groups(users, None, None, items, weights, real=np.asarray(len(places), np.int32))


def streamed(train: Interactions, *, block: int = 1 << 22, chunk: int = 16) -> Streamed:
    """Returns one example per positive, as `singles` does, in blocks that are read from the host.

    The host reads the next block while one trains, so that the device holds at most two. If
    `Interactions.open` maps `train` into memory, the host holds only a few blocks, too, and never
    the whole set.

    The order of the positives is less random than that of `singles`, which are shuffled as a whole.
    Here, `chunk` consecutive pairs of `train`, often of one user, form a chunk. In each epoch the
    chunks are shuffled and divided into blocks, and the pairs of each block are shuffled. So a
    block has pairs from the whole set, each positive occurs once, and the order depends only on the
    run's key and the epoch. But the pairs of a chunk share a block, or two if a block ends inside
    the chunk. Use chunks that are shorter than the rows of most users: if all pairs of a user are
    in one block, the model fits one part of the users after another. `chunk=1` shuffles the whole
    set.

    A file that fits into the host's memory is read once, so that small chunks cost little. If it
    does not, each block reads about one page of the file, 1024 pairs, for each chunk; larger chunks
    then save time. The order takes up to 8 bytes of memory for each chunk.

    Batches carry no histories; a model that knows users by their items needs `singles`.

    Args:
        train: the positives, on the host.
        block: largest number of positives in a block.
        chunk: number of consecutive pairs that are read at once.

    Raises:
        ValueError: if `block` or `chunk` is not an integer of 1 or more, or there are no pairs, or
            weights are negative, not finite or all 0.

    >>> train = Interactions.from_pairs([0, 0, 1, 2, 2], [1, 3, 0, 0, 2])
    >>> key, epoch = jax.random.key(0), np.int32(0)
    >>> [int(block.real) for block in streamed(train, block=2, chunk=1).blocks(key, epoch)]
    [1, 2, 2]
    """
    check_positives(train=train)
    block, chunk = integer("block", block, most=MOST), integer("chunk", chunk)
    host = {name: getattr(train, name) for name in ("indptr", "indices", "weights")}
    host = {name: None if column is None else np.asarray(column) for name, column in host.items()}
    host["indices"] = host["indices"][: int(host["indptr"][-1])]  # without padding
    train = dataclasses.replace(train, timestamps=None, **host)
    return Streamed(train, -(-train.n_pairs // block), chunk)
