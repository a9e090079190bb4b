"""A model, a mesh and a PPO stage of the smallest size that can still go wrong, for several test files."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax import generate, lora, model, ppo, sharding
from rlhf_jax.data.batches import Batch, Prompts
from rlhf_jax.ppo import programs as ppo_programs

PAD, EOS, VOCAB = 0, 1, 61  # 61 is padded to 64: the padding of the vocabulary is there in every test
CONFIG = model.TransformerConfig(
    vocab_size=VOCAB, num_layers=2, embed_dim=32, num_heads=8, max_length=48, init_std=0.2, scan_layers=False
)
SCANNED = dataclasses.replace(CONFIG, scan_layers=True)  # as on a pod; and half the time to compile
MESHES = {"1x1x1": (1, 1, 1), "8x1x1": (8, 1, 1), "1x8x1": (1, 8, 1), "1x1x8": (1, 1, 8), "2x2x2": (2, 2, 2)}


def llama(**changes) -> model.TransformerConfig:
    """The other family: rope, rmsnorm, swiglu, fewer key-value heads, no bias, an lm head of its own."""
    family = dict(positions="rope", norm="rmsnorm", mlp="swiglu", use_bias=False, tie_embeddings=False)
    return dataclasses.replace(CONFIG, num_kv_heads=2, mlp_dim=48, **family | changes)


@functools.cache
def mesh_of(name: str) -> jax.sharding.Mesh:
    sizes = MESHES[name]
    return sharding.make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])


def params_of(config: model.TransformerConfig, seed: int, head: str = "lm") -> dict:
    """Random parameters in which nothing is 0 or 1, biases and scales included."""
    leaves, tree = jax.tree.flatten(model.param_shapes(config, head))
    rng = np.random.default_rng(seed)
    params = jax.tree.unflatten(tree, [rng.normal(0, 0.2, x.shape).astype(np.float32) for x in leaves])
    return jax.tree_util.tree_map_with_path(lambda path, x: x + 1 if path[-1].key == "scale" else x, params)


def place(params: dict, config: model.TransformerConfig, mesh, head: str = "lm") -> dict:
    """Parameters on the mesh."""
    return jax.device_put(params, sharding.param_shardings(model.logical_axes(config, head), params, mesh))


def prompts_of(rows: int, length: int, seed: int = 0) -> Prompts:
    """Left-padded prompts of random lengths, 1 to `length`."""
    rng = np.random.default_rng(seed)
    mask = np.arange(length)[::-1] < rng.integers(1, length + 1, rows)[:, None]
    tokens = np.where(mask, rng.integers(2, VOCAB, (rows, length)), PAD).astype(np.int32)
    return Prompts(tokens, mask, np.arange(rows, dtype=np.int32))


def documents_of(rows: int, length: int, seed: int = 0) -> Batch:
    """Packed rows of two documents and some padding."""
    rng = np.random.default_rng(seed)
    column = np.arange(length)
    cut, end = rng.integers(2, length // 2, (rows, 1)), rng.integers(length // 2 + 2, length + 1, (rows, 1))
    segments = np.where(column < cut, 1, np.where(column < end, 2, 0))
    positions = np.where(segments == 0, 0, column - np.where(segments == 2, cut, 0))
    return Batch(
        tokens=np.where(segments > 0, rng.integers(2, VOCAB, (rows, length)), PAD).astype(np.int32),
        loss_mask=((segments > 0) & (positions > 0)).astype(np.float32),
        segment_ids=segments.astype(np.int32),
        positions=positions.astype(np.int32),
    )


COEFFICIENTS = dict(
    ptx_coef=0.5,
    learning_rate=1e-2,
    value_learning_rate=1e-2,
    temperature=1.0,
    cliprange=0.2,
    cliprange_value=0.2,
    vf_coef=0.5,
    entropy_coef=0.0,
    gamma=1.0,
    lam=0.95,
    missing_eos_value=-1.0,
    ema_decay=0.9,
    kl_target=6.0,
    kl_horizon=100.0,
)


def coefficients(**changes) -> ppo.Coefficients:
    return ppo.Coefficients(**{name: jnp.float32(x) for name, x in (COEFFICIENTS | changes).items()})


def rollout_of(rows: int, prompt_length: int, length: int, seed: int = 0) -> generate.Rollout:
    """Completions of all lengths from 1; those that fill `length` have an EOS in every other row.

    `logprobs` are not a model's: score must not use them for anything but the gap it reports.
    """
    prompts, rng = prompts_of(rows, prompt_length, seed), np.random.default_rng(seed)
    lengths = 1 + np.arange(rows) % length
    column = np.arange(length)
    mask = column < lengths[:, None]
    completions = np.where(mask, rng.integers(2, VOCAB, (rows, length)), PAD)
    ends = (lengths < length) | (np.arange(rows) // length % 2 == 1)
    completions = np.where((column == lengths[:, None] - 1) & ends[:, None], EOS, completions)
    tokens = np.concatenate([prompts.tokens, completions], axis=1).astype(np.int32)
    logprobs = np.where(mask, -rng.exponential(size=mask.shape), 0).astype(np.float32)
    return generate.Rollout(tokens, prompts.mask, mask, logprobs)


def minibatches_of(rows: int, size: int) -> np.ndarray:
    """The rows of each minibatch, in a random order."""
    return np.random.default_rng(5).permutation(rows).reshape(-1, size)


class PPO:
    """The programs of a PPO stage on one mesh, with fixed models; policy, ref, value and reward all differ.

    Optimizers are plain gradient descent unless given, so that a step shows its gradient.
    """

    rows, minibatch = 32, 16

    def __init__(self, mesh: str, *, config=SCANNED, microbatches: int = 1, optimizer=None, shared=False, **fields):
        self.config, self.mesh = config, mesh_of(mesh)
        self.optimizer = optimizer or optax.identity()
        value_config = None if shared or fields.get("advantage", "gae") != "gae" else config
        self.ppo_config = ppo.PPOConfig(config, value_config, EOS, microbatches=microbatches, **fields)
        self.minibatches = minibatches_of(self.rows, self.minibatch)
        self.reward_fn = ppo.SequenceScore(config)
        policy, reward = params_of(config, 1), params_of(config, 3, "scalar")
        ref = jax.tree.map(lambda x, noise: x + 0.1 * noise, policy, params_of(config, 2))
        # Of adapters, all models have the policy's base; without them, it is empty.
        self.base, self.policy = lora.split(place(policy, config, self.mesh))
        self.ref = lora.trained(place(ref, config, self.mesh))
        self.reward = lora.trained(place(reward, config, self.mesh, "scalar"))
        value = lora.trained(place(params_of(config, 4, "scalar"), config, self.mesh, "scalar"))
        self.value = value if value_config else model.scalar_head_of(value) if shared else None
        optimizers = (self.optimizer,) * 2
        self._init, shardings = ppo_programs.state_maker(self.ppo_config, self.mesh, sharding.DEFAULT_RULES, optimizers)
        sampler = generate.Sampler(config, self.mesh, completion_length=8, eos_id=EOS, pad_id=PAD)
        self.programs = ppo_programs.PPOPrograms(
            self.ppo_config, self.reward_fn, optimizers, shardings, sampler, self.mesh
        )

    def state(self) -> ppo.PPOState:
        with jax.set_mesh(self.mesh):
            return self._init(self.policy, self.value, jnp.float32(0.1))

    def score(self, state, rollout, coefs, ref=None):
        """The experience of a rollout, of which these are the minibatches."""
        with jax.set_mesh(self.mesh):
            rollout = sharding.put_batch(rollout, self.mesh)
            models = state.policy.params, state.value_params, self.ref if ref is None else ref, self.reward
            return self.programs.score(*models, rollout, state.kl_coef, coefs, list(self.minibatches), self.base)

    def update(self, state, experience, rows, coefs, ptx=None):
        """One step on these rows; the state is donated."""
        with jax.set_mesh(self.mesh):
            ptx = None if ptx is None else sharding.put_batch(ptx, self.mesh)
            return self.programs.update(state, self.programs.take(experience, rows), ptx, coefs, self.base)
