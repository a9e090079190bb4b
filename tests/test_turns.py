"""How often each part of the sampling program runs: against the program itself, which counts them."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rlhf_jax import model
from rlhf_jax.generate import sizes as sizes_lib
from rlhf_jax.generate import slots
from rlhf_jax.generate.turns import turns
from rlhf_jax.model import lengths as lengths_lib


@pytest.mark.parametrize(
    "count, copies, least, ways", [(0, 1, 1, 1), (0, 1, 4, 1), (3, 1, 1, 1), (4, 2, 1, 1), (8, 1, 1, 2)]
)
def test_the_loop_is_played_as_the_program_runs_it(count, copies, least, ways, monkeypatch):
    """Devices are an axis of vmap here: as on a mesh, they look at their slots and stop together."""
    monkeypatch.setattr(slots, "_NARROWER", 2)
    monkeypatch.setattr(slots, "_LEAST", least)
    monkeypatch.setattr(sizes_lib, "_SHARED", 2)
    rows, width, completion = 8 * ways, 40, 70
    rng = np.random.default_rng(count)
    prompts = np.repeat(rng.integers(1, width + 1, rows // copies), copies)
    completions = rng.integers(1, completion + 1, rows)
    lengths = sizes_lib.Sizes(completion, eos_id=-1, pad_id=0, slots=count, copies=copies)
    mask = np.arange(width) >= width - prompts[:, None]
    params = model.init_params(tiny.CONFIG, jax.random.key(0))
    runs = collections.Counter()
    play_switch = jax.lax.switch

    def count_run(part):
        jax.debug.callback(lambda: runs.update([part]))

    def counted(name, part_of):
        method = getattr(slots.Decoder, name)

        def call(self, state):
            count_run(part_of(len(state.live)))
            return method(self, state)

        monkeypatch.setattr(slots.Decoder, name, call)

    def switch(branch, branches, *operands):
        if len(branches) > 1:
            scope = f"read_{len(operands[1].live)}" if hasattr(operands[0], "keys") else "longest"
            jax.debug.callback(lambda branch: runs.update([f"{scope} {branch}"]), branch)
        return play_switch(branch, branches, *operands)

    counted("read_group", lambda slots: "groups")
    counted("decode_page", lambda slots: f"pages_{slots}")
    monkeypatch.setattr(slots.jax.lax, "switch", switch)
    # Numbers in the place of what the model says: only the lengths decide about the loops.
    monkeypatch.setattr(slots.decode, "decode_step", lambda *given: (jnp.zeros((len(given[3]), 16)), given[6]))
    monkeypatch.setattr(
        slots.Decoder, "choose", lambda self, hidden, row, step, seen: (jnp.ones_like(row), jnp.zeros(len(row)))
    )

    @jax.jit
    @functools.partial(jax.vmap, axis_name="devices")
    def sample(tokens, mask, limits):
        given = None, None, None, lengths.of_device(rows, ways, ("devices",)), limits
        return slots.Decoder.of(tiny.CONFIG, params, tokens, mask, *given).sample()

    found = sample(*(x.reshape(ways, -1, *x.shape[1:]) for x in (jnp.ones(mask.shape, jnp.int32), mask, completions)))
    jax.effects_barrier()
    assert np.array_equal(found.completion_mask.sum(-1).reshape(-1), completions)
    played = turns(prompts, completions, width, lengths, ways)
    assert {part: number for part, number in played.items() if number} == dict(runs)
    assert played["groups"] > 1 or not count
    assert sum(part.startswith("pages_") and number > 0 for part, number in played.items()) == 2


def test_full_lengths_on_devices_that_do_the_same():
    lengths = sizes_lib.Sizes(1024, eos_id=0, pad_id=0, slots=256)
    prompts, completions = np.full(512, 1024), np.full(512, 1024)
    found = turns(prompts, completions, 1024, lengths, ways=8)
    pages = -(-1023 // lengths.page)
    # 32 slots a device read 16 prompts in a group; both halves of the rows decode all their pages.
    assert found["pages_32"] == sum(number for part, number in found.items() if part.startswith("read_32 "))
    assert 2 * pages <= found["pages_32"] <= 3 * pages
    assert found["pages_8"] == 0  # all end together
    assert found["groups"] == sum(number for part, number in found.items() if part.startswith("longest "))


@pytest.mark.parametrize("count, ways, most", [(32, 1, 1.2), (64, 1, 1.2), (64, 4, 1.4), (0, 1, 2.1), (0, 4, 2.3)])
def test_little_more_is_computed_than_the_tokens_that_are_wanted(count, ways, most):
    """512 prompts with the paper's lengths: rows x steps for each token. Without stages all slots make 8.5, and 64 make 1.5."""
    prompts, completions = lengths_lib.parse("--lengths", "prompt:166,completion:130").drawn(512, 1024, 1024)
    sizes = sizes_lib.Sizes(1024, eos_id=-1, pad_id=0, slots=count)
    runs = turns(prompts, completions, 1024, sizes, ways)
    pages = {int(part[len("pages_") :]): number for part, number in runs.items() if part.startswith("pages_")}
    computed = sum(ways * width * number * sizes.page for width, number in pages.items())
    assert completions.sum() < computed < most * completions.sum()
