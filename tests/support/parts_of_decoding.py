"""Times the parts of a decode step, each in a program of its own: a step can hardly take less than their sum.

    python tests/support/parts_of_decoding.py [repeats, 100]

The shapes are those of experiments/bench.py:small,llama: 32 rows, of whose cache 64 places are filled in the mean.
"""

import statistics
import sys
import time

import jax
import jax.numpy as jnp

ROWS, WIDTH, MLP, HEADS, LAYERS, VOCABULARY, PLACES = 32, 512, 1408, 8, 8, 8192, 64


def products(hidden, layers):
    """The products with the weights of all layers."""
    for layer in layers:
        query = (hidden @ layer["qkv"])[:, :WIDTH]
        gate, up = jnp.split((hidden + query @ layer["out"]) @ layer["gate_up"], 2, axis=-1)
        hidden = hidden + (jax.nn.silu(gate) * up) @ layer["down"]
    return hidden


def head(hidden, table):
    """The logits."""
    return hidden @ table


def attention(query, cache):
    """Attention of one token a row to the cache, in all layers."""
    total = 0
    for keys, values in cache:
        weights = jax.nn.softmax(jnp.einsum("bhd,bhpd->bhp", query, keys))
        total = total + jnp.einsum("bhp,bhpd->bhd", weights, values)
    return total


def draw(logits, uniform):
    """One token of each row."""
    return (jnp.cumsum(jax.nn.softmax(logits), axis=-1) < uniform).sum(-1)


def main(repeats: int) -> None:
    keys = iter(jax.random.split(jax.random.key(0), 100))

    def random(*shape):
        return 0.02 * jax.random.normal(next(keys), shape)

    layers = [
        {
            "qkv": random(WIDTH, 3 * WIDTH),
            "out": random(WIDTH, WIDTH),
            "gate_up": random(WIDTH, 2 * MLP),
            "down": random(MLP, WIDTH),
        }
        for _ in range(LAYERS)
    ]
    cache = [tuple(random(ROWS, HEADS, PLACES, WIDTH // HEADS) for _ in range(2)) for _ in range(LAYERS)]
    parts = {
        products: (random(ROWS, WIDTH), layers),
        head: (random(ROWS, WIDTH), random(WIDTH, VOCABULARY)),
        attention: (random(ROWS, HEADS, WIDTH // HEADS), cache),
        draw: (random(ROWS, VOCABULARY), jnp.full((ROWS, 1), 0.5)),
    }
    total = 0.0
    for part, arguments in parts.items():
        program, seconds = jax.jit(part), []
        jax.block_until_ready(program(*arguments))
        for _ in range(repeats):
            start = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            seconds.append(time.perf_counter() - start)
        total += statistics.median(seconds)
        print(f"{part.__name__:10} {1e3 * statistics.median(seconds):6.2f} ms")
    print(f"{'sum':10} {1e3 * total:6.2f} ms")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 100)
