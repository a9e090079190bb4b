"""Measures the loss of a head and its gradient: log-probabilities by chunks, whose backward pass computes the logits again,
against a sum by chunks, which does not. They take turns. For a topology, says what the compiled programs move.

    python tests/support/loss_by_chunks.py [vocabulary] [width] [rows] [places] [chunks, 0,512] [repeats, or a topology]
"""

import functools
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import losses, model, sharding, token_loss
from rlhf_jax.plan import hlo, topology

FORMS = "log-probabilities", "sum"


def loss(form: str, config: model.TransformerConfig, table: dict, hidden, targets, loss_mask) -> jax.Array:
    """Returns the summed loss of hidden states [B, T, D]."""
    if form == "sum":
        return token_loss.of_hidden(config, table, hidden, targets, loss_mask)
    return losses.token_cross_entropy(model.target_logprobs(config, table, hidden, targets), loss_mask)[0]


def main(vocabulary: int, width: int, rows: int, places: int, chunks: str, last: str) -> None:
    planned = not last.isdigit()
    dtype, devices = "bfloat16" if planned else "float32", None
    if planned:
        topology.prepare([place := topology.parse(last)])
        devices = place.devices()
    mesh = sharding.make_mesh(1, len(devices or jax.devices()), 1, devices=devices)
    over_rows = sharding.over_batch(mesh)
    programs = {}
    for chunk in map(int, chunks.split(",")):
        config = model.TransformerConfig(
            vocabulary, 1, width, width // 64, vocab_multiple=128, dtype=dtype, logits_chunk=chunk
        )
        table = {"embedding": jax.ShapeDtypeStruct((config.padded_vocab, width), jnp.float32)}
        axes = {"embedding": model.logical_axes(config)["embedding"]}
        own = sharding.param_shardings(axes, table, mesh)
        shapes = [(rows, places, width), dtype], [(rows, places), "int32"], [(rows, places), "float32"]
        arrays = [jax.ShapeDtypeStruct(*shape, sharding=over_rows) for shape in shapes]
        table = jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), table, own)
        for form in FORMS:
            function = jax.value_and_grad(functools.partial(loss, form, config), (0, 1))
            with jax.set_mesh(mesh):
                program = jax.jit(function, out_shardings=(None, (own, over_rows))).lower(table, *arrays).compile()
            programs[form, chunk] = program
            said = f"temporaries {program.memory_analysis().temp_size_in_bytes / 2**20:.0f} MiB"
            if planned:
                facts = hlo.read(program.as_text(), mesh, place.island_of, on_chip_spaces=place.chip.kind == "tpu")
                sent = ", ".join(f"{c.kind} {c.count} x, {c.bytes / 1e9:.2f} GB" for c in facts.collectives[:2])
                said = f"moved {facts.moved / 1e9:.1f} GB, {said}, {sent}"
            print(f"{form}, chunks of {chunk}: {said}", flush=True)
    if not planned:
        measure(programs, int(last), vocabulary)


def measure(programs: dict, repeats: int, vocabulary: int) -> None:
    """Prints the median time of each program on random numbers."""
    rng, times = np.random.default_rng(0), {name: [] for name in programs}
    for repeat in range(repeats + 1):
        for name, program in programs.items():
            (table, hidden, targets, loss_mask), _ = program.in_avals
            arrays = (
                {"embedding": jnp.asarray(0.02 * rng.normal(size=table["embedding"].shape), jnp.float32)},
                jnp.asarray(rng.normal(size=hidden.shape), hidden.dtype),
                jnp.asarray(rng.integers(0, vocabulary, targets.shape), jnp.int32),
                jnp.asarray(rng.random(loss_mask.shape) < 0.7, jnp.float32),
            )
            start = time.perf_counter()
            jax.block_until_ready(program(*arrays))
            if repeat:
                times[name].append(time.perf_counter() - start)
    for (form, chunk), found in times.items():
        print(f"{form}, chunks of {chunk}: {statistics.median(found):.3f} s", flush=True)


if __name__ == "__main__":
    given = sys.argv[1:] + ["49152", "576", "1", "2048", "0,512,256,128", "4"][len(sys.argv) - 1 :]
    main(*map(int, given[:4]), *given[4:])
