"""Mutations of the mathematics, the stages and the report: each is a fault that the tests named beside it must notice.

A slow run (`bash launch/test.sh --slow tests/test_mutations.py`) writes each fault into a copy of the project and runs
those tests, which are in the default selection. A fast test holds the list true: what a mutation replaces stands once in
the file.
"""

import os
import pathlib
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest

PROJECT = pathlib.Path(__file__).resolve().parent.parent


class Mutation(NamedTuple):
    file: str  # below rlhf_jax/
    before: str
    after: str
    tests: str  # a file of tests/ and, after a space, what -k selects

    def __str__(self) -> str:
        return f"{self.file}: {self.after.strip() or 'without ' + self.before.strip()}"


MUTATIONS = [
    Mutation(*fields)
    for fields in [
        # --- losses
        (
            "losses.py",
            "return -jnp.sum(loss_mask * _select(loss_mask > 0, logprobs)), jnp.sum(loss_mask)",
            "return -jnp.sum(loss_mask * _select(loss_mask > 0, logprobs)), jnp.float32(loss_mask.size)",
            "test_losses.py",
        ),
        (
            "losses.py",
            "axis=(1, 2)) / jnp.maximum(pairs, 1)\n    total = jnp.sum(weights * losses)",
            "axis=(1, 2))\n    total = jnp.sum(weights * losses)",
            "test_losses.py",
        ),
        (
            "losses.py",
            "kept = (ranks[..., :, None] < ranks[..., None, :])",
            "kept = (ranks[..., :, None] <= ranks[..., None, :])",
            "test_losses.py",
        ),
        ("losses.py", "correct = (1 + jnp.sign(margins)) / 2", "correct = (margins >= 0)", "test_losses.py"),
        (
            "losses.py",
            "losses = jnp.maximum(unclipped, clipped)\n    sums",
            "losses = jnp.minimum(unclipped, clipped)\n    sums",
            "test_losses.py",
        ),
        (
            "losses.py",
            "jnp.clip(ratio, 1 - cliprange, 1 + cliprange)",
            "jnp.clip(ratio, 1 - cliprange, jnp.inf)",
            "test_losses.py",
        ),
        (
            "losses.py",
            "losses = 0.5 * jnp.maximum(unclipped, clipped)",
            "losses = 0.5 * jnp.minimum(unclipped, clipped)",
            "test_losses.py",
        ),
        (
            "losses.py",
            "near = jnp.clip(new_values, values - cliprange_value, values + cliprange_value)",
            "near = jnp.clip(new_values, returns - cliprange_value, returns + cliprange_value)",
            "test_losses.py",
        ),
        (
            "losses.py",
            "smoothed = jnp.sum(label_smoothing * ",
            "smoothed = jnp.sum(-label_smoothing * ",
            "test_dpo.py loop",
        ),
        # --- advantages
        ("advantages.py", "jnp.expm1(-k1) + k1", "jnp.expm1(k1) - k1", "test_advantages.py"),
        ("advantages.py", "return mask & (real_from_here == 1)", "return real_from_here == 1", "test_advantages.py"),
        (
            "advantages.py",
            "return jnp.where(has_eos, scores, scores - value)",
            "return jnp.where(has_eos, scores, scores + value)",
            "test_advantages.py",
        ),
        (
            "advantages.py",
            "return jnp.where(last_token(mask), scores, 0) - penalties",
            "return jnp.where(last_token(mask), scores - penalties, 0)",
            "test_advantages.py",
        ),
        (
            "advantages.py",
            "deltas = rewards + gamma * next_values - values",
            "deltas = rewards + next_values - values",
            "test_advantages.py",
        ),
        (
            "advantages.py",
            "advantage = delta + gamma * lam * advantage",
            "advantage = delta + lam * advantage",
            "test_advantages.py",
        ),
        ("advantages.py", "(samples / (samples - 1))", "((samples - 1) / samples)", "test_advantages.py"),
        (
            "advantages.py",
            "jax.lax.rsqrt(masked_var(x, mask) + WHITEN_EPSILON)",
            "jax.lax.rsqrt(masked_var(x, jnp.ones_like(mask)) + WHITEN_EPSILON)",
            "test_advantages.py",
        ),
        (
            "advantages.py",
            "whitened if shift_mean else whitened + mean",
            "whitened + mean if shift_mean else whitened",
            "test_advantages.py",
        ),
        (
            "advantages.py",
            "error = jnp.clip(kl / target - 1, -0.2, 0.2)",
            "error = jnp.clip(1 - kl / target, -0.2, 0.2)",
            "test_advantages.py",
        ),
        # --- PPO
        (
            "ppo/completions.py",
            "jnp.any(is_end(rollout.completions, eos_id) & rollout.completion_mask, axis=1)",
            "jnp.any(is_end(rollout.completions, eos_id), axis=1)",
            "test_ppo.py padding",
        ),
        (
            "ppo/update.py",
            "value_optimizer, coefs.value_learning_rate * rate",
            "value_optimizer, coefs.value_learning_rate",
            "test_ppo.py epochs_times_minibatches",
        ),
        (
            "ppo/update.py",
            "grads = jax.tree.map(lambda g, p: g + coefs.ptx_coef * p, grads, ptx_grads)",
            "grads = jax.tree.map(lambda g, p: coefs.ptx_coef * (g + p), grads, ptx_grads)",
            "test_ppo.py gradient_of_both",
        ),
        (
            "ppo/score.py",
            'penalty = kl_coef if config.kl_in == "reward" else 0.0',
            "penalty = kl_coef",
            "test_ppo_options.py",
        ),
        (
            "ppo/update.py",
            'loss = losses.plus(loss, "policy/entropy", -coefs.entropy_coef, entropy, mask)',
            'loss = losses.plus(loss, "policy/entropy", coefs.entropy_coef, entropy, mask)',
            "test_ppo_options.py entropy",
        ),
        (
            "ppo/programs.py",
            "warmup_steps=section.warmup_iterations * steps_per_iteration",
            "warmup_steps=section.warmup_iterations",
            "test_ppo.py warm_up",
        ),
        (
            "ppo/programs.py",
            "return section.ptx_ratio * section.minibatch_size // section.ppo_epochs",
            "return section.ptx_ratio * section.minibatch_size",
            "test_ppo.py warm_up",
        ),
        (
            "stages/ppo_models.py",
            "value |= jax.tree.map(jnp.zeros_like, model.scalar_head_of(value))",
            "pass",
            "test_ppo.py starts_at_zero",
        ),
        (
            "ppo/programs.py",
            "orders = [jax.random.permutation(jax.random.fold_in(key, 1 + epoch), rows)",
            "orders = [jax.random.permutation(jax.random.fold_in(key, 1), rows)",
            "test_ppo.py epochs_times_minibatches",
        ),
        (
            "stages/ppo.py",
            'policies = {"ema": state.policy.ema_params, "params": state.policy.params}',
            'policies = {"params": state.policy.ema_params, "ema": state.policy.params}',
            "test_ppo.py hands_on",
        ),
        (
            "losses.py",
            "variance = jnp.sum(_select(mask, returns - mean) ** 2) / count",
            "variance = jnp.sum(_select(mask, returns) ** 2) / count - mean**2",
            "test_losses.py explained",
        ),
        (
            "train.py",
            "(1.0 - decay) / (1.0 - jnp.where(plain, 0.0, decay) ** step)",
            "1.0 - decay",
            "test_train.py average",
        ),
        (
            "train.py",
            "jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(rows))",
            "jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.zeros(rows, int))",
            "test_train.py key",
        ),
        # --- the other stages
        ("selection.py", 'value > best["value"] if', 'value >= best["value"] if', "test_sft.py best"),
        (
            "selection.py",
            'while best and best["step"] >= step',
            'while best and best["step"] > step',
            "test_sft.py resumed",
        ),
        # --- what is looked at while PPO trains
        ("ppo/watch.py", "jnp.argmin(scores)", "jnp.argmax(scores)", "test_ppo_validation.py agrees"),
        ("ppo/watch.py", "jnp.where(mask, mixed ^ (mixed >> 13), 0)", "mixed", "test_ppo_validation.py equal"),
        (
            "stages/ppo_validation.py",
            'policy.ema_params if programs.output_of(self._section) == "ema" else policy.params',
            "policy.params",
            "test_ppo_validation.py worth",
        ),
        (
            "stages/ppo_validation.py",
            "since >= section.stop_patience",
            "since > section.stop_patience",
            "test_ppo_validation.py patience",
        ),
        (
            "journal.py",
            'row["step"] <= (resume_step or 0)',
            'row["step"] <= (resume_step or 0) + 1',
            "test_ppo_validation.py survives",
        ),
        ("loop.py", "if (saving or ended) and alive:", "if saving and alive:", "test_ppo_validation.py stop_rule"),
        (
            "stages/reward_model.py",
            "if len({ranking.ranks[place] for place in pair}) > 1",
            "if True",
            "test_reward_model.py pooled",
        ),
        (
            "evaluate/preferences.py",
            '"accuracy": statistics.share(right, units=units)._asdict()',
            '"accuracy": statistics.share(right)._asdict()',
            "test_preferences.py",
        ),
        (
            "evaluate/preferences.py",
            "if ranking.ranks[better] < ranking.ranks[worse]",
            "if ranking.ranks[better] <= ranking.ranks[worse]",
            "test_preferences.py",
        ),
        (
            "data/ranking_batches.py",
            "cut += sum(were_cut[place] for place in places)",
            "cut += any(were_cut)",
            "test_batches.py",
        ),
        (
            "data/ranking_batches.py",
            "without_repeats([answers[n].tobytes() for n in places]",
            "without_repeats([own[n].tobytes() for n in places]",
            "test_batches.py cut",
        ),
        (
            "stages/reward_model.py",
            "rankings.training_rows(run, stage, split_into_pairs(kept))",
            "rankings.training_rows(run, stage, split_into_pairs(rows))",
            "test_reward_model.py pooled",
        ),
        ("stages/rankings.py", 'if text and name == "train" else found', "if text else found", "test_rankings.py"),
        (
            "stages/rankings.py",
            'hashlib.blake2b(f"{seed}/{unit}".encode())',
            'hashlib.blake2b(f"{unit}".encode())',
            "test_rankings.py",
        ),
        ("checkpoint.py", "if found != size:", "if found < size:", "test_checkpoint.py longer"),
        (
            "stages/dpo.py",
            "examples = with_reference(run, stage, start, examples)",
            "pass",
            "test_dpo.py references_log",
        ),
        (
            "stages/best_of_n.py",
            "rollout = hosts.fetch(sampler(params, batch, run.key(stage, number)",
            "rollout = hosts.fetch(sampler(params, batch, run.key(stage)",
            "test_best_of_n_stage.py key_of_its_own",
        ),
        ("fields/noted.py", '"completion_length", ', "", "test_sweep.py identity_is"),
        ("fields/noted.py", '"too_long", ', "", "test_sweep.py identity_is"),
        ("sweep/store.py", '(*noted.COMMON, "evaluate")', "noted.COMMON", "test_sweep.py identity_is"),
        # --- the report
        (
            "report/verdicts/measured.py",
            "found.append((math.sqrt(x) if rule.sqrt_x else x, y))",
            "found.append((math.sqrt(x), y))",
            "test_verdicts.py",
        ),
        (
            "report/verdicts/contrast.py",
            "return NOT if wide_low > self.margin or wide_high < -self.margin else UNDECIDED",
            "return NOT",
            "test_verdicts.py",
        ),
        ("report/verdicts/contrast.py", "self.interval(corrected)", "self.interval(level)", "test_verdicts.py"),
        (
            "evaluate/overoptimization.py",
            "own = np.arange(len(gains)) % folds == part",
            "own = np.arange(len(gains)) % folds >= 0",
            "test_overoptimization.py",
        ),
    ]
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_what_a_mutation_replaces_stands_once_in_its_file(mutation):
    text = (PROJECT / "rlhf_jax" / mutation.file).read_text(encoding="utf-8")
    assert text.count(mutation.before) == 1, "the code has changed: change the mutation with it"
    assert (PROJECT / "tests" / mutation.tests.split()[0]).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_mutation_is_noticed(mutation, tmp_path):
    copy = tmp_path / "project"
    skipped = shutil.ignore_patterns("__pycache__")
    for folder in ("rlhf_jax", "tests", "experiments"):
        shutil.copytree(PROJECT / folder, copy / folder, ignore=skipped)
    shutil.copy(PROJECT / "setup.cfg", copy)
    path = copy / "rlhf_jax" / mutation.file
    path.write_text(path.read_text(encoding="utf-8").replace(mutation.before, mutation.after), encoding="utf-8")
    file, _, chosen = mutation.tests.partition(" ")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "-m",
        "not slow",
        f"tests/{file}",
        "-k",
        chosen,
    ]
    environment = os.environ | {"PYTHONPATH": str(copy)}
    found = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert found.returncode == 1, f"nothing noticed it:\n{found.stdout[-2000:]}{found.stderr[-2000:]}"
    assert " failed" in found.stdout and "SyntaxError" not in found.stdout, found.stdout[-2000:]
