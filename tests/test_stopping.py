"""Sampling that ends where the host says so: a completion is the start of a whole one, whatever the slots and the mesh."""

import functools

import jax
import numpy as np
import pytest
import tiny

from rlhf_jax import generate
from rlhf_jax.data.batches import Prompts
from rlhf_jax.generate import sizes as sizes_lib
from rlhf_jax.generate import slots as slots_lib
from rlhf_jax.generate.stopping import StoppingSampler
from rlhf_jax.runtime import hosts

P, C, ROWS, PAGE = 7, 20, 16, 5
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
CONFIGS = {"gpt": tiny.CONFIG, "llama": tiny.llama(scan_layers=True)}


@pytest.fixture(autouse=True, scope="module")
def small():
    """Pages of 5 tokens and a stage of half the slots, so that a small batch has several of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes_lib, "_PAGE", PAGE)
        patch.setattr(slots_lib, "_STAGES", 2)
        patch.setattr(slots_lib, "_PAGES", 1)
        patch.setattr(slots_lib, "_NARROWER", 2)
        patch.setattr(slots_lib, "_LEAST", 1)
        yield


def ended(completions, mask):
    """Completions end with the second of some tokens, each after another number of them."""
    asked = (completions % 7 == 3) | (completions == tiny.PAD)  # padding would count if the mask had it
    return np.sum(asked & mask, axis=1) >= 2


class Stopped:
    """A sample that was stopped, the number of completions at each look, and how often the loop's body was compiled."""

    def __init__(self, name="llama", mesh="1x1x1", slots=0, temperature=1.0, prompts=None):
        config, mesh = CONFIGS[name], tiny.mesh_of(mesh)
        sampler = StoppingSampler(config, mesh, completion_length=C, eos_id=tiny.EOS, pad_id=tiny.PAD, slots=slots)
        self.looks = []

        def look(completions, mask):
            self.looks.append(len(completions))
            return ended(completions, mask)

        with jax.set_mesh(mesh):
            params = sampler.layout(tiny.place(tiny.params_of(config, 0), config, mesh))
            prompts = prompts or tiny.prompts_of(ROWS, P)
            self.rollout = sampler(params, prompts, jax.random.key(1), temperature, look)
        self.compiled = sampler._go_on._cache_size()

    def assert_same(self, other: "Stopped"):
        np.testing.assert_array_equal(self.rollout.tokens, other.rollout.tokens)
        np.testing.assert_array_equal(self.rollout.completion_mask, other.rollout.completion_mask)
        # Products of another number of rows are rounded otherwise.
        np.testing.assert_allclose(self.rollout.logprobs, other.rollout.logprobs, atol=1e-5)


@functools.cache
def stopped(mesh="1x1x1", slots=0, temperature=1.0, name="llama"):
    return Stopped(name, mesh, slots, temperature)


@pytest.mark.parametrize("name, temperature", [("llama", 1.0), slow("llama", 0.0), slow("gpt", 1.0)])
def test_a_stopped_sample_is_the_start_of_a_whole_one(name, temperature):
    """It ends with the page in which the host notices an end."""
    config, mesh = CONFIGS[name], tiny.mesh_of("1x1x1")
    sampler = generate.Sampler(config, mesh, completion_length=C, eos_id=tiny.EOS, pad_id=tiny.PAD)
    with jax.set_mesh(mesh):
        whole = hosts.fetch(
            sampler(tiny.params_of(config, 0), tiny.prompts_of(ROWS, P), jax.random.key(1), temperature)
        )
    found = stopped(name=name, temperature=temperature).rollout
    lengths = found.completion_mask.sum(1)
    for row, length in enumerate(lengths):
        tokens, real = whole.completions[row : row + 1], whole.completion_mask[row : row + 1]
        pages = np.arange(1 + PAGE, C + PAGE, PAGE)
        ends = [page for page in pages if ended(tokens, real & (np.arange(C) < page))[0]]
        assert length == min([real.sum(), *ends])
        np.testing.assert_array_equal(found.completions[row, :length], tokens[0, :length])
        np.testing.assert_allclose(found.logprobs[row, :length], whole.logprobs[row, :length], atol=1e-5)
    assert len(set(lengths)) > 4 and np.sum(lengths < whole.completion_mask.sum(1)) > 4, "the test needs early ends"


@pytest.mark.parametrize(
    "mesh, slots, temperature",
    [
        ("1x1x1", 4, 1.0),
        ("2x2x2", 8, 1.0),
        *(slow(*case) for case in (("1x1x1", 4, 0.0), ("2x2x2", 8, 0.0), ("1x8x1", 8, 1.0), ("2x2x2", 0, 1.0))),
    ],
)
def test_slots_and_meshes_change_no_token(mesh, slots, temperature):
    found = stopped(mesh, slots, temperature)
    found.assert_same(stopped(temperature=temperature))
    assert max(found.looks) <= (slots or ROWS), "the host looks at completions that go on, and at no others"


def test_a_slot_whose_completion_has_ended_takes_the_next_prompt():
    """Slots that wait for each other take as many pages as the longest completion of each four has."""
    pages = -(-(stopped().rollout.completion_mask.sum(1) - 1) // PAGE)
    queue = np.argsort(-tiny.prompts_of(ROWS, P).mask.sum(1), stable=True)
    waiting, least = pages[queue].reshape(-1, 4).max(1).sum(), pages.sum() / 4
    assert least <= len(stopped(slots=4).looks) < waiting


@pytest.mark.parametrize("mesh, slots", [("1x1x1", 0), ("1x1x1", 4), ("2x2x2", 8)])
def test_a_page_is_compiled_once_for_each_number_of_slots(mesh, slots):
    assert stopped(mesh, slots).compiled == 2


@pytest.mark.parametrize("slots", [0, 3])
def test_rows_without_a_prompt_get_no_completion(slots):
    prompts = tiny.prompts_of(ROWS, P)
    asked = np.arange(ROWS) % 3 > 0
    found = Stopped(slots=slots, prompts=Prompts(prompts.tokens, prompts.mask & asked[:, None], prompts.index)).rollout
    whole = stopped().rollout
    np.testing.assert_array_equal(found.completion_mask, whole.completion_mask & asked[:, None])
    np.testing.assert_array_equal(found.completions[asked], whole.completions[asked])
    assert (found.completions[~asked] == tiny.PAD).all()
