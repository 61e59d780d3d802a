"""Examples in blocks from the host: what a block holds, and that all options of `fit` work with them."""

import dataclasses
import functools
import itertools
import tracemalloc
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import support

import jaxrec as jr
from jaxrec import _pairs
from jaxrec.data import synthetic
from jaxrec.interactions import Interactions
from jaxrec.train import loop

TRAIN, TEST = synthetic.checkerboard(12)  # 60 pairs
MODEL = jr.models.MF(12, 12, dim=4, scale=0.1)
TX = optax.sgd(0.3, momentum=0.9)
BLOCKS = partial(jr.train.streamed, block=17, chunk=3)  # 4 blocks of 15


def objective_of(variables, key, batch):
    """BPR against a uniform random number, which compiles in less time than a sampler."""
    scores = MODEL.apply(variables, batch.users, batch.items)
    return jr.losses.mean(jax.nn.softplus(jax.random.uniform(key) - scores), where=batch.where, weights=batch.weights)


def weighted(n):
    """n pairs of three users, with a different weight for each pair."""
    users, items = np.divmod(np.arange(n), -(-n // 3))
    return Interactions.from_pairs(users, items, weights=np.arange(n) + 1)


def fit(epochs=3, objective=objective_of, train=TRAIN, state=None, **options):
    state = jr.train.init(jax.random.key(0), MODEL, TX) if state is None else state
    options = {"batch_size": 4, "progress": False, "examples": BLOCKS} | options
    return jr.train.fit(state, objective, TX, train, epochs=epochs, **options)


def same(a, b):
    a, b = jax.tree.leaves((a.variables, a.opt_state, a.epoch)), jax.tree.leaves((b.variables, b.opt_state, b.epoch))
    return len(a) == len(b) and all(map(np.array_equal, a, b))


def joined(blocks):
    """The users, items and weights of blocks without padding."""
    columns = [[part[: int(block.real)] for part in (block.users, block.items, block.weights)] for block in blocks]
    return [np.concatenate(parts) for parts in zip(*columns)]


@functools.cache
def whole(epochs):
    return fit(epochs)


# ---------------------------------------------------------------------- blocks


@pytest.mark.every_case
@pytest.mark.parametrize("n", [1, 10, 41])
@pytest.mark.parametrize("block", [1, 7, 10, 100])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_blocks_have_every_positive_once_and_equal_shapes(n, block, chunk):
    train, key = weighted(n), jax.random.key(0)
    stream = jr.train.streamed(train, block=block, chunk=chunk)
    blocks = list(stream.blocks(key, np.int32(2)))
    assert len(blocks) == stream.n_blocks == -(-n // block)
    assert len({tuple((x.shape, x.dtype) for x in jax.tree.leaves(block)) for block in blocks}) == 1
    sizes = [int(part.real) for part in blocks]
    assert max(sizes) == len(blocks[0].users) <= block and min(sizes) >= max(sizes) - 1 and sum(sizes) == n
    users, items, weights = joined(blocks)
    np.testing.assert_array_equal(np.sort(weights), train.weights)
    order = np.argsort(weights)
    np.testing.assert_array_equal((users[order], items[order]), train.pairs())


def test_the_order_depends_only_on_key_and_epoch():
    stream = jr.train.streamed(weighted(41), block=10, chunk=4)

    def order(seed, epoch):
        return joined(stream.blocks(jax.random.key(seed), jnp.int32(epoch)))[2].tolist()

    found = [order(seed, epoch) for seed, epoch in itertools.product(range(2), range(3))]
    assert len(set(map(tuple, found))) == 6
    assert order(1, 2) == found[-1]


def test_a_chunk_is_in_one_block_unless_the_block_ends_inside_it():
    stream = jr.train.streamed(weighted(41), block=10, chunk=4)
    with_others = np.zeros((11, 11), bool)
    for epoch in range(20):
        blocks = stream.blocks(jax.random.key(0), epoch)
        blocks = [np.unique((block.weights[: block.real].astype(int) - 1) // 4) for block in blocks]
        counts = np.bincount(np.concatenate(blocks))
        assert (counts <= 2).all() and (counts == 2).sum() <= 4
        for chunks in blocks:
            with_others[np.ix_(chunks, chunks)] = True
    assert with_others.all()  # any two chunks meet


def test_single_pairs_are_shuffled_over_all_blocks():
    """Each pair is in each of four blocks equally often, within five standard deviations of a binomial distribution."""
    stream, counts, n = jr.train.streamed(weighted(40), block=10, chunk=1), np.zeros((4, 40)), 400
    for epoch in range(n):
        for number, block in enumerate(stream.blocks(jax.random.key(0), epoch)):
            counts[number, block.weights[: block.real].astype(int) - 1] += 1
    assert np.abs(counts - n / 4).max() < 5 * np.sqrt(n * 3 / 16)


def test_a_mapped_set_is_read_block_by_block(tmp_path, monkeypatch):
    monkeypatch.setattr(_pairs, "BLOCK", 1000)
    n = 200_000
    users, items = np.divmod(np.arange(n), 2000)
    Interactions.from_pairs(users, items, weights=np.ones(n)).save(tmp_path / "train")
    train = Interactions.open(tmp_path / "train")
    stream = jr.train.streamed(train, block=2000, chunk=100)
    next(stream.blocks(jax.random.key(0), np.int32(0)))
    tracemalloc.start()
    stream = jr.train.streamed(train, block=2000, chunk=100)
    n_read = sum(int(block.real) for block in stream.blocks(jax.random.key(0), np.int32(0)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_read == n and peak < 0.25 * train.indices.nbytes


@pytest.mark.every_case
@pytest.mark.parametrize(
    "how, message",
    [
        ({"block": 0}, "block=0; give an integer from 1"),
        ({"block": 2.5}, "block=2.5; give an integer"),
        ({"chunk": -1}, "chunk=-1; give an integer of 1 or more"),
        ({"train": TRAIN.select(np.zeros(60, bool))}, "train has no pairs"),
        ({"train": Interactions(*jax.tree.leaves(TRAIN), np.full(60, -1.0), None, 12, 12)}, r"weights\[0\] is -1.0"),
    ],
)
def test_what_cannot_be_streamed_is_named(how, message):
    with pytest.raises(ValueError, match=message):
        jr.train.streamed(**{"train": TRAIN} | how)


# ---------------------------------------------------------------------- training


@pytest.mark.deep
def test_one_block_is_the_set_on_the_device_bit_for_bit():
    train = dataclasses.replace(TRAIN, weights=np.arange(60, dtype=np.float32))
    resident, log = fit(examples=jr.train.singles, train=train)
    streamed, other = fit(examples=jr.train.streamed, train=train)
    assert same(resident, streamed)
    assert [record["loss"] for record in log.records] == [record["loss"] for record in other.records]


def test_a_block_is_an_epoch_of_the_program():
    """Block b of epoch e is epoch 4 e + b of `train.epoch`, with the same keys and steps."""
    state, log = whole(2)
    stream, expected, losses = BLOCKS(TRAIN), jr.train.init(jax.random.key(0), MODEL, TX), []
    step = jax.jit(lambda state, data: jr.train.epoch(state, objective_of, TX, data, batch_size=4))
    for epoch in range(2):
        for block in stream.blocks(expected.key, np.int32(epoch)):
            expected, values = step(expected, block)
            losses.append(values)
    assert int(expected.epoch) == 8 and int(state.epoch) == 2
    assert same(state, expected._replace(epoch=state.epoch))
    np.testing.assert_allclose([x["loss"] for x in log.records], np.reshape(losses, (2, -1)).mean(1), rtol=1e-6)


@pytest.mark.parametrize("block", [17, 59, 7])
def test_every_positive_trains_once_per_epoch_and_steps_are_numbered_over_epochs(block):
    seen = []

    def objective(variables, key, batch):
        jax.debug.callback(lambda *parts: seen.append(parts), batch.users, batch.items, batch.where, batch.step)
        return objective_of(variables, key, batch)

    fit(2, objective, examples=partial(jr.train.streamed, block=block, chunk=2))
    jax.effects_barrier()
    seen = sorted(seen, key=lambda parts: int(parts[3]))
    n_steps = len(seen) // 2
    assert [int(step) for *_, step in seen] == list(range(2 * n_steps))
    assert n_steps == {17: 16, 59: 16, 7: 18}[block]
    for epoch in (seen[:n_steps], seen[n_steps:]):
        users, items, where = (
            np.concatenate([np.asarray(parts[at]).reshape(-1) for parts in epoch]) for at in range(3)
        )
        order = np.lexsort((items[where], users[where]))
        np.testing.assert_array_equal((users[where][order], items[where][order]), TRAIN.pairs())


@pytest.mark.deep
def test_blocks_share_one_program():
    compiled = []
    jax.clear_caches()
    listen = lambda event, *args, fun_name="", **more: compiled.append(fun_name) if "trace" in event else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        fit(2, examples=partial(jr.train.streamed, block=13, chunk=2))  # blocks of 12
        fit(2, examples=partial(jr.train.streamed, block=7, chunk=2))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert sum(name == "_epoch" for name in compiled) == 2


@pytest.mark.deep
def test_it_learns_the_checkerboard():
    sample = partial(jr.sampling.uniform, n_items=12, n=3)
    objective = partial(jr.train.pairwise_objective, model=MODEL, loss=jr.losses.bpr, sample=sample)
    state = jr.train.init(jax.random.key(0), MODEL, support.TX)
    options = {"epochs": 60, "batch_size": 4, "examples": BLOCKS, "progress": False}
    state, log = jr.train.fit(state, objective, support.TX, TRAIN, **options)
    report = jr.evaluate.full_ranking(MODEL, state.variables, TRAIN, TEST, ks=(1,))
    assert report.means["hit_rate@1"] >= 0.9
    assert log.records[-1]["loss"] < 0.7 * log.records[0]["loss"]


def test_a_mapped_set_trains_as_one_in_memory(tmp_path):
    TRAIN.save(tmp_path / "train")
    assert same(fit(2, train=Interactions.open(tmp_path / "train"))[0], whole(2)[0])


def test_a_run_continues_and_resumes_bit_identically(tmp_path):
    expected, log = whole(4)
    assert same(fit(4, state=whole(2)[0])[0], expected)
    checkpoint = jr.train.Checkpoint(tmp_path)
    fit(2, checkpoint=checkpoint)
    state, resumed = fit(4, checkpoint=checkpoint)
    assert same(state, expected)
    assert [x["loss"] for x in resumed.records] == [x["loss"] for x in log.records]
    for other in (partial(jr.train.streamed, block=16, chunk=3), partial(jr.train.streamed, block=17, chunk=4)):
        with pytest.raises(ValueError, match=r"holds another run, with examples='streamed\(block=17, chunk=3\)"):
            fit(5, checkpoint=checkpoint, examples=other)


def test_a_run_that_dies_inside_an_epoch_resumes_from_the_one_before(tmp_path):
    checkpoint, expected = jr.train.Checkpoint(tmp_path), whole(4)[0]

    class Dying(jr.train.stream.Streamed):
        def blocks(self, key, epoch):
            for number, block in enumerate(super().blocks(key, epoch)):
                if int(epoch) == 2 and number == 2:
                    raise KeyboardInterrupt
                yield block

    def examples(train):
        stream = BLOCKS(train)
        return Dying(stream.train, stream.n_blocks, stream.chunk)

    with pytest.raises(jr.train.Interrupted) as caught:
        fit(4, examples=examples)
    assert int(caught.value.state.epoch) == 2
    assert same(caught.value.state, whole(2)[0])
    assert same(fit(4, state=caught.value.state, checkpoint=checkpoint)[0], expected)


def test_validation_stopping_and_callbacks_see_whole_epochs():
    metrics, called = iter([0.1, 0.3, 0.2, 0.1]), []
    state, log = fit(
        9,
        validate=lambda variables: {"a": next(metrics)},
        stopping=jr.train.EarlyStopping("a", patience=2),
        callbacks=[lambda state, record: called.append((int(state.epoch), record["epoch"]))],
    )
    assert same(state, whole(2)[0])
    assert called == [(n, n) for n in range(1, 5)] and [record["a"] for record in log.records] == [0.1, 0.3, 0.2, 0.1]


@pytest.mark.parametrize("at", [5, 13])
def test_divergence_names_the_step_of_the_epoch_and_ends_it(at):
    """An epoch has 16 steps. One loss of the second epoch is NaN."""
    read = []

    def objective(variables, key, batch):
        loss = objective_of(variables, key, batch)
        return loss + jnp.where(batch.step == 16 + at, jnp.nan, 0.0).astype(loss.dtype)

    class Counted(jr.train.stream.Streamed):
        def blocks(self, key, epoch):
            for block in super().blocks(key, epoch):
                read.append(int(epoch))
                yield block

    def examples(train):
        return Counted(*(getattr(BLOCKS(train), name) for name in ("train", "n_blocks", "chunk")))

    with pytest.raises(jr.train.DivergenceError, match=f"the loss is nan at epoch 2, step {at + 1} of 16;") as caught:
        fit(4, objective, examples=examples)
    assert same(caught.value.state, fit(1, objective)[0])
    assert read.count(1) == min(at // 4 + 2, 4)


def test_only_one_block_is_read_ahead(monkeypatch):
    events = []

    class Finite:
        def __init__(self, place):
            self.place = place

        def __bool__(self):
            events.append(("wait", self.place))
            return True

    class Read(jr.train.stream.Streamed):
        def blocks(self, key, epoch):
            for number, block in enumerate(super().blocks(key, epoch)):
                events.append(("read", number))
                yield block

    def run(state, arrays, data, place, **how):
        events.append(("run", int(place)))
        return state, np.zeros(1), Finite(int(place))

    monkeypatch.setattr(loop, "_epoch", run)
    fit(1, examples=lambda train: Read(TRAIN, 4, 3))
    expected = [("read", 0), ("run", 0)]
    expected += [(what, at) for n in (1, 2, 3) for what, at in (("read", n), ("run", n), ("wait", n - 1))]
    assert events[: len(expected)] == expected


# ---------------------------------------------------------------------- other streams, and sweeps


def test_your_own_stream_is_trained_on():
    """The two blocks are halves of the users. An example has all pairs of a user."""

    class Halves:
        n_blocks = 2

        def __init__(self, train):
            users = train.pairs()[0]
            self.parts = [jr.train.groups(train.select((users < 6) == first), n=6) for first in (True, False)]

        def blocks(self, key, epoch):
            return self.parts[:: 1 if int(epoch) % 2 else -1]

    state, log = fit(60, examples=Halves)
    assert int(state.epoch) == 60 and log.records[-1]["loss"] < 0.7 * log.records[0]["loss"]


def test_a_sweep_refuses_a_stream():
    setup = lambda learning_rate: (MODEL, objective_of, TX)  # noqa: E731
    keys = jax.random.split(jax.random.key(0), 1)
    with pytest.raises(ValueError, match=r"gives a stream, which sweeps do not take; call fit for each run"):
        jr.train.sweep(keys, setup, TRAIN, settings={"learning_rate": [0.1]}, epochs=1, examples=BLOCKS)


@pytest.mark.deep
@pytest.mark.parametrize("kept", [1, 3])
def test_a_stream_of_another_number_of_blocks_is_refused(kept):
    class Few:
        n_blocks = 2

        def blocks(self, key, epoch):
            return [block for block, _ in zip(itertools.cycle(whole.blocks(key, epoch)), range(kept))]

    train = jr.Interactions.from_pairs(np.arange(20), np.arange(20) % 7)
    whole, model = jr.train.streamed(train, block=10), jr.models.MF(20, 7, dim=2)
    sample = partial(jr.sampling.uniform, n_items=7)
    objective = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=sample)
    state = jr.train.init(jax.random.key(0), model, optax.sgd(0.1))
    options = {"epochs": 1, "batch_size": 5, "progress": False, "examples": lambda train: Few()}
    with pytest.raises(ValueError, match=f"gave {kept} blocks in epoch 1, but its n_blocks is 2"):
        jr.train.fit(state, objective, optax.sgd(0.1), train, **options)


def test_padding_is_not_streamed():
    train = jr.Interactions.from_pairs(np.arange(20), np.arange(20) % 7).take(np.arange(20), capacity=64)
    blocks = list(jr.train.streamed(train, block=10).blocks(jax.random.key(0), np.int32(0)))
    assert len(blocks) == 2 and max(block.users.max() for block in blocks) == 19
