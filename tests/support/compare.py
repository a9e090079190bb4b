"""What a stage of a run left behind, and that another run left the same."""

import jax
import numpy as np
import orbax.checkpoint as ocp

from rlhf_jax import checkpoint
from rlhf_jax.metrics import read_metrics
from rlhf_jax.runtime.files import read_json


def timeless(path) -> list[dict]:
    """The rows of metrics.jsonl without its date and its durations, which no two runs have in common."""
    rows = read_metrics(path / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not f"{name}/".startswith("time/")} for row in rows]


def saved_arrays(path) -> dict[str, np.ndarray]:
    """The output of a stage, and all of its last checkpoint: parameters, optimizers, averages, kl_coef."""
    last = max(int(step.name) for step in (path / "checkpoints").iterdir() if step.name.isdecimal())
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def read(path):
        with ocp.StandardCheckpointer() as reader:
            tree = reader.metadata(path).item_metadata.tree
            wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), tree)
            return reader.restore(path, wanted)

    trees = {"params": read(path / "params"), "state": read(path / "checkpoints" / str(last))}
    return {jax.tree_util.keystr(name): np.asarray(leaf) for name, leaf in jax.tree.leaves_with_path(trees)}


def assert_same_stage(path, expected, stage):
    assert timeless(path / stage) == timeless(expected / stage)
    found, wanted = saved_arrays(path / stage), saved_arrays(expected / stage)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, name)


def params_of(folder) -> dict[str, np.ndarray]:
    """The output of a stage alone, of one that left no checkpoint."""
    tree = {}
    for name, facts in read_json(folder / "params" / "manifest.json")["arrays"].items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jax.ShapeDtypeStruct(facts["shape"], facts["dtype"])
    tree = checkpoint.load_params(folder / "params", tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}
