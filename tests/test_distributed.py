"""The solvers over 2 processes of `jax.distributed` on this machine, with 2 devices each."""

import json
import os
import socket
import subprocess
import sys
import textwrap
from functools import partial

import pytest

PROCESS = """
    import json, sys
    from functools import partial
    import jax, numpy as np
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{sys.argv[2]}", num_processes=2, process_id=int(sys.argv[1]))
    import jaxrec as jr
    rng = np.random.default_rng(0)
    train = jr.Interactions.from_pairs(*np.nonzero(rng.random((23, 11)) < 0.4), n_users=23, n_items=11)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("users",))
    assert mesh.size == 4 and jax.local_device_count() == 2
    options = dict(dim=3, regularization=0.1, sweeps=3, key=jax.random.key(0), tolerance=None, progress=False)
    fits = {"rg2": jr.solvers.rg2.fit, "ials": partial(jr.solvers.ials.fit, unobserved_weight=0.2)}
    answer = {}
    for name, fit in fits.items():
        _, variables, history = fit(train, mesh=mesh, **options)
        _, alone, _ = fit(train, **options)
        pairs = [(variables["params"][side], alone["params"][side]) for side in ("user", "item")]
        same = [np.allclose(dealt, single, rtol=1e-4, atol=1e-5) for dealt, single in pairs]
        answer[name] = same, history.records[-1]["objective"]
    print(json.dumps([jax.process_index(), answer]))
"""


@pytest.mark.deep
def test_two_processes_give_what_one_does(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    script = tmp_path / "process.py"
    script.write_text(textwrap.dedent(PROCESS))
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    start = partial(subprocess.Popen, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    processes = [start([sys.executable, str(script), str(number), port]) for number in range(2)]
    try:
        answers = []
        for process in processes:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
            answers.append(json.loads(out.splitlines()[-1]))
    finally:
        for process in processes:
            process.kill()
    (first, one), (second, other) = answers
    assert (first, second) == (0, 1) and one == other
    assert {name: same for name, (same, _) in one.items()} == {"rg2": [True, True], "ials": [True, True]}
