"""The solvers, training and checkpoints over 2 processes of `jax.distributed` on this machine, with 2 devices each."""

import json
import os
import socket
import subprocess
import sys
import textwrap
from functools import partial

import jax
import numpy as np
import pytest

import jaxrec as jr

START = """
    import json, sys
    from functools import partial
    import jax, numpy as np
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_disable_most_optimizations", True)  # as the tests do: equal bits of a first state
    jax.distributed.initialize(f"localhost:{sys.argv[2]}", num_processes=2, process_id=int(sys.argv[1]))
    import jaxrec as jr
    assert len(jax.devices()) == 4 and jax.local_device_count() == 2
    mesh = jax.make_mesh((4,), ("rows",))
    whole = partial(jax.device_put, device=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
"""

SOLVERS = """
    rng = np.random.default_rng(0)
    train = jr.Interactions.from_pairs(*np.nonzero(rng.random((23, 12)) < 0.4), n_users=23, n_items=12)
    options = dict(dim=3, regularization=0.1, sweeps=3, key=jax.random.key(0), tolerance=None, progress=False)
    fits = {"rg2": jr.solvers.rg2.fit, "ials": partial(jr.solvers.ials.fit, unobserved_weight=0.2)}
    answer = {}
    for name, fit in fits.items():
        _, variables, log = fit(train, mesh=mesh, **options)
        _, alone, _ = fit(train, **options)
        pairs = [(whole(variables["params"][side]), alone["params"][side]) for side in ("user", "item")]
        assert not variables["params"]["item"].is_fully_replicated
        same = [np.allclose(sharded, single, rtol=1e-4, atol=1e-5) for sharded, single in pairs]
        answer[name] = same, log.records[-1]["objective"]
    print(json.dumps([jax.process_index(), answer]))
"""

TRAINING = """
    sys.path.insert(0, sys.argv[4])
    from test_distributed import MODEL, TEST, TRAIN, TX, new, trained
    checkpoint = jr.train.Checkpoint(sys.argv[3])
    shard = partial(jr.train.shard, train=TRAIN, mesh=mesh)
    state, _ = trained(shard(new()), 2, checkpoint)
    alone, _ = trained(new(), 2)
    answer = {}
    for name in ("variables", "opt_state"):
        pairs = zip(*(jax.tree.leaves(getattr(s, name)) for s in (state, alone)), strict=True)
        answer[name] = all(np.allclose(whole(a), b, rtol=1e-4, atol=1e-6) for a, b in pairs)
    answer["sharded"] = not state.variables["params"]["user"].is_fully_addressable
    reports = [jr.evaluate.full_ranking(MODEL, s.variables, TRAIN, TEST, ks=5).means for s in (state, alone)]
    answer["ranking"] = all(abs(reports[0][name] - reports[1][name]) < 1e-6 for name in reports[1])
    lists = [jr.evaluate.top_k(MODEL, s.variables, range(9), k=3)[1] for s in (state, alone)]
    answer["lists"] = bool((lists[0] == lists[1]).all())
    resumed, log = trained(shard(new()), 3, checkpoint)
    answer["resumed"] = log.column("loss")[1]
    answer["sum"] = float(abs(whole(resumed.variables["params"]["user"])).sum())
    print(json.dumps([jax.process_index(), answer]))
"""


def answers(tmp_path, code, *arguments):
    """Runs the code in two processes, and returns the last line that each prints."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    script = tmp_path / "process.py"
    script.write_text(textwrap.dedent(START) + textwrap.dedent(code))
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    start = partial(subprocess.Popen, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    processes = [start([sys.executable, str(script), str(number), port, *arguments]) for number in range(2)]
    try:
        found = []
        for process in processes:
            out, err = process.communicate(timeout=180)
            assert process.returncode == 0, err
            found.append(json.loads(out.splitlines()[-1]))
    finally:
        for process in processes:
            process.kill()
    (first, one), (second, other) = found
    assert (first, second) == (0, 1) and one == other
    return one


@pytest.mark.deep
def test_two_processes_solve_as_one_does(tmp_path):
    found = answers(tmp_path, SOLVERS)
    assert {name: same for name, (same, _) in found.items()} == {"rg2": [True, True], "ials": [True, True]}


# ---------------------------------------------------------------------- training

PAIRS = np.argwhere(np.random.default_rng(0).random((24, 16)) < 0.4).T
TRAIN, TEST = (jr.Interactions.from_pairs(*PAIRS[:, part::2], n_users=24, n_items=16) for part in range(2))
MODEL = jr.models.MF(24, 16, dim=8, scale=0.3)
TX = jr.optim.rowwise.adam(0.05)


def new():
    return jr.train.init(jax.random.key(0), MODEL, TX)


def trained(state, epochs, checkpoint=None):
    sample = partial(jr.sampling.uniform, n_items=16, n=2)
    objective = partial(jr.train.pairwise_objective, model=MODEL, loss=jr.losses.bpr, sample=sample)
    options = {"batch_size": 16, "checkpoint": checkpoint, "progress": False}
    return jr.train.fit(state, objective, TX, TRAIN, epochs=epochs, **options)


@pytest.mark.deep
def test_two_processes_train_and_resume_as_one_does(tmp_path):
    folder = tmp_path / "run"
    found = answers(tmp_path, TRAINING, str(folder), os.path.dirname(__file__))
    alone, log = trained(new(), 3)
    assert found["resumed"] == pytest.approx(log.column("loss")[1], rel=1e-5)
    assert found["sum"] == pytest.approx(float(abs(alone.variables["params"]["user"]).sum()), rel=1e-5)
    assert all(found[name] for name in ("variables", "opt_state", "sharded", "ranking", "lists"))
    # The same checkpoint in this process: on one device, and on 2 devices.
    mesh = jax.make_mesh((2,), ("rows",), devices=jax.devices()[:2])
    for state in (new(), jr.train.shard(new(), TRAIN, mesh)):
        resumed, _ = trained(state, 4, jr.train.Checkpoint(folder))
        expected, _ = trained(new(), 4)
        for a, b in zip(jax.tree.leaves(resumed.variables), jax.tree.leaves(expected.variables), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        assert [a.sharding for a in jax.tree.leaves(resumed)] == [a.sharding for a in jax.tree.leaves(state)]
