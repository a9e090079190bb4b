"""Several rewards in one score, and the stage that is rewarded by functions: its files, resume, failures, and learning."""

import json
import pathlib
import re
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from compare import assert_same_stage, timeless
from toy import get_config as toy_config

from rlhf_jax import command_line, pipeline, ppo, rewards, sharding
from rlhf_jax import config as config_lib
from rlhf_jax import run as run_lib
from rlhf_jax.ppo import programs as ppo_programs
from rlhf_jax.ppo.mixture import Mixture, ModelScores, combined, mixture_of, next_scales
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.progress import Stopped
from rlhf_jax.stages import ppo as ppo_stage

pytestmark = pytest.mark.usefixtures("one_device")

MIXTURE = Mixture(("a", "b", "c"), (False, True, False), standardize=False)


def test_the_sum_is_that_of_a_loop_in_numpy_and_standardised_by_the_first_iteration_alone():
    rng = np.random.default_rng(0)
    first, later = (rng.normal(3, 2, (3, 16)).astype(np.float32) for _ in range(2))
    weights = np.float32([0.5, -2.0, 1.0])

    def of(columns, scales, standardize):
        mixture = Mixture(MIXTURE.names, MIXTURE.given, standardize)
        return combined(mixture, columns[[0, 2]].T, columns[[1]].T, weights, scales)

    total, _, metrics = of(first, None, False)
    np.testing.assert_allclose(total, weights @ first, rtol=1e-5)
    np.testing.assert_allclose([metrics[f"objective/scores/{name}"] for name in "abc"], first.mean(1), rtol=1e-5)

    scales = Mixture(MIXTURE.names, MIXTURE.given, True).scales()
    means, deviations = first.mean(1, keepdims=True), first.std(1, keepdims=True)
    for columns in (first, later):
        total, scores_of, metrics = of(columns, scales, True)
        np.testing.assert_allclose(total, weights @ ((columns - means) / deviations), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose([metrics[f"objective/scores/{name}"] for name in "abc"], columns.mean(1), rtol=1e-5)
        np.testing.assert_array_equal([scores_of[name] for name in "abc"], columns)  # as the rewards gave them
        scales = next_scales(scales, metrics)
    # Scores that are all equal have no deviation to divide by.
    total, _, metrics = of(
        np.full((3, 16), 0.1, np.float32), Mixture(MIXTURE.names, MIXTURE.given, True).scales(), True
    )
    np.testing.assert_allclose(total, 0, atol=1e-6)
    assert metrics["objective/scales/a/deviation"] == 1.0


def test_what_a_section_says():
    section = config_lib.ppo_config()
    assert mixture_of(section) is None
    assert ppo_programs.coefficients(section).reward_weights is None
    section.reward = "reward_model, short=rlhf_jax.rewards:length(limit=5)"
    assert mixture_of(section) == Mixture(("reward_model", "short"), (False, True), False)
    np.testing.assert_array_equal(ppo_programs.coefficients(section).reward_weights, [1, 1])
    section.reward_weights = (1.0, 0.25)
    np.testing.assert_array_equal(ppo_programs.coefficients(section).reward_weights, [1, 0.25])
    section.reward, section.reward_weights, section.reward_standardize = "reward_model", (), True
    assert mixture_of(section) == Mixture(("reward_model",), (False,), True)
    section.reward_standardize = False
    for reward, given in (("short=rlhf_jax.rewards:length(limit=5)", True), ("short=reward_model", False)):
        section.reward = (
            reward  # a function is no model that the program reads, and a name of its own is in the metrics
        )
        assert mixture_of(section) == Mixture(("short",), (given,), False)


@pytest.mark.parametrize("mesh", ["2x2x2", pytest.param("1x1x1", marks=pytest.mark.slow)])
def test_the_program_scores_by_models_and_by_what_the_host_gives(mesh):
    """Two reward models and a function; and a function alone."""
    s, rollout = tiny.PPO(mesh), tiny.rollout_of(32, 8, 8)
    other = tiny.place(tiny.params_of(s.config, 9, "scalar"), s.config, s.mesh, "scalar")
    given = np.random.default_rng(1).normal(size=(32, 1)).astype(np.float32)

    def scored(mixture, rewards, weights, given):
        config = ppo.PPOConfig(s.config, s.config, tiny.EOS, mixture=mixture, missing_eos="none")
        fn = ModelScores((s.reward_fn,) * len(rewards)) if rewards else None
        score = jax.jit(ppo.make_score(config, fn))
        coefs = tiny.coefficients().replace(reward_weights=jnp.float32(weights))
        with jax.set_mesh(s.mesh):
            state, batch = s.state(), sharding.put_batch(rollout, s.mesh)
            given = None if given is None else sharding.put_batch(given, s.mesh)
            found = score(
                state.policy.params,
                state.value_params,
                s.ref,
                rewards,
                batch,
                state.kl_coef,
                coefs,
                list(s.minibatches),
                given=given,
            )
        return np.asarray(found[0].scores), found[1]

    def alone(params):
        with jax.set_mesh(s.mesh):
            return np.asarray(jax.jit(s.reward_fn)(params, sharding.put_batch(rollout, s.mesh)))

    a, b = alone(s.reward), alone(other)
    scores, metrics = scored(MIXTURE, (s.reward, other), [1.0, 0.5, -2.0], given)
    np.testing.assert_allclose(scores, a + 0.5 * given[:, 0] - 2 * b, atol=1e-4)
    np.testing.assert_allclose(metrics["objective/scores/b"], given.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["objective/scores/c"], b.mean(), rtol=1e-3, atol=1e-5)
    scores, _ = scored(Mixture(("b",), (True,), False), (), [3.0], given)
    np.testing.assert_allclose(scores, 3 * given[:, 0], rtol=1e-6)


# ---------------------------------------------------------------------------- the stage

FUNCTIONS = """
def brevity(texts, prompts, rows):
    return [-len(text) / 10 for text in texts]

def vowels(texts, prompts, rows, letters="aeiou"):
    assert all(prompt and row for prompt, row in zip(prompts, rows))
    return [sum(letter in letters for letter in text) / max(len(text), 1) for text in texts]
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    """A file of reward functions that imports find; returns the function that writes it anew."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(source):
        sys.modules.pop("toy_rewards", None)
        (tmp_path / "toy_rewards.py").write_text(textwrap.dedent(source), encoding="utf-8")

    write(FUNCTIONS)
    yield write
    sys.modules.pop("toy_rewards", None)


def config_of(reward, **changes):
    """PPO from random weights, rewarded by functions: there is no other stage."""
    config = toy_config()
    config.stages = ("ppo",)
    config.ppo.update(init="", reward=reward, **changes)
    return config


def run_ppo(path, config, stop=None):
    with run_lib.start(config, str(path)) as run:
        key = run.key

        def watched(*names):
            if names[0] == "ppo" and names[1] == stop:
                run.interrupt.requested = True
            return key(*names)

        run.key = watched
        pipeline.check(run)
        ppo_stage.run_stage(run, "ppo")


BOTH = "toy_rewards:brevity, vowels=toy_rewards:vowels(letters='aeiouy')"


def test_a_stage_rewarded_by_functions_resumes_bit_by_bit(functions, tmp_path, capsys):
    config = config_of(BOTH, reward_weights=(1.0, 0.5), reward_standardize=True)
    run_ppo(tmp_path / "one", config)
    with pytest.raises(Stopped):
        run_ppo(tmp_path / "two", config, stop=1)
    run_ppo(tmp_path / "two", config)
    assert_same_stage(tmp_path / "two", tmp_path / "one", "ppo")
    assert "changed" not in capsys.readouterr().out
    rows = timeless(tmp_path / "one" / "ppo")
    assert len(rows) == 4 and {"objective/scores/brevity", "objective/scores/vowels"} <= rows[0].keys()
    for name in ("brevity", "vowels"):  # the scales are those of the first iteration
        assert (
            len({(row[f"objective/scales/{name}/mean"], row[f"objective/scales/{name}/deviation"]) for row in rows})
            == 1
        )
        assert rows[0][f"objective/scales/{name}/mean"] == pytest.approx(rows[0][f"objective/scores/{name}"], rel=1e-5)
    assert abs(rows[0]["objective/raw_scores"]) < 1e-5 < abs(rows[1]["objective/raw_scores"])
    kept = json.loads((tmp_path / "one" / "config.json").read_text())["ppo"]
    assert kept["value_init"] == "policy"  # no reward model to start from
    assert [len(sums) for sums in json.loads((tmp_path / "one" / "ppo" / "rewards.json").read_text()).values()] == [1]


@pytest.mark.slow
def test_a_function_that_fails_ends_the_run_and_loses_nothing(functions, tmp_path, capsys):
    """It fails in the third iteration, at a place that no checkpoint was due; corrected, the run goes on from there."""
    state = tmp_path / "calls"
    failing = f"""
        import pathlib
        def brevity(texts, prompts, rows):
            file = pathlib.Path({str(state)!r})
            file.write_text(file.read_text() + "x" if file.exists() else "x")
            if len(file.read_text()) == {{}}:
                return [float("nan")] * len(texts)
            return [-len(text) / 10 for text in texts]
    """
    config = config_of("toy_rewards:brevity")
    config.ppo.checkpoint_every = 10
    run_ppo(tmp_path / "whole", config)
    functions(failing.format(3))
    with pytest.raises(InputError, match='ppo.reward: toy_rewards:brevity returned nan for the prompt "') as raised:
        run_ppo(tmp_path / "run", config)
    assert "\n" not in str(raised.value)
    assert [path.name for path in (tmp_path / "run" / "ppo" / "checkpoints").iterdir()] == ["2"]
    functions(FUNCTIONS)
    run_ppo(tmp_path / "run", config)
    assert "toy_rewards.py was changed after this stage began" in capsys.readouterr().out
    assert_same_stage(tmp_path / "run", tmp_path / "whole", "ppo")
    (sums,) = json.loads((tmp_path / "run" / "ppo" / "rewards.json").read_text()).values()
    assert len(sums) == 2


@pytest.mark.parametrize(
    "reward, changes, sentence",
    [
        ("toy_rewards:brevty", {}, "has no function brevty; did you mean brevity"),
        ("toy_rewards:brevity(limit=3)", {}, "must take \\(texts, prompts, rows, limit\\)"),
        ("nowhere:f", {}, "there is no module nowhere"),
        (BOTH, {"value_init": "reward"}, "value_init='reward' needs a reward model, and ppo.reward=.* functions alone"),
        (BOTH, {"reward_weights": (1.0,)}, "reward_weights=\\(1.0,\\) must have a weight for each of the 2 rewards"),
        ("a:f, b:f", {}, "ppo.reward='a:f, b:f' must be a stage, a folder of a model, or module:function"),
        ("reward_model, toy_rewards:brevity", {}, "ppo.reward names 'reward_model', which is no reward_model stage"),
    ],
)
def test_bad_rewards_are_refused_before_anything_is_computed(
    functions, tmp_path, monkeypatch, reward, changes, sentence
):
    monkeypatch.setattr(ppo_stage, "run_stage", lambda *_: pytest.fail("the stage ran"))
    with pytest.raises(InputError, match=sentence):
        run_ppo(tmp_path / "run", config_of(reward, **changes))


@pytest.mark.slow
def test_the_worked_example_of_the_page_runs(tmp_path, monkeypatch):
    """Its files beside each other; the rows' answers reach the function, which finds those that are right."""
    page = (pathlib.Path(__file__).parent.parent / "docs" / "rewards.md").read_text(encoding="utf-8")
    functions, experiment = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_rewards.py").write_text(functions)
    (tmp_path / "sums.py").write_text(experiment)
    rows = [{"prompt": f"{n} + {n} =", "completion": f" {n + n}", "answer": f"#### {n + n}"} for n in range(40)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    seen = []

    def spy(texts, prompts, rows, **options):
        seen.extend(zip(prompts, rows))
        return rewards.texts.answer(texts, prompts, rows, **options)

    monkeypatch.setattr("rlhf_jax.rewards.answer", spy)
    config = command_line.load(str(tmp_path / "sums.py"))
    config.data.files.dir = str(tmp_path)
    run_ppo(tmp_path / "run", config)
    assert len(seen) == 16
    for prompt, row in seen:
        assert row["answer"] == f"#### {2 * int(prompt.split()[0])}"
    last = timeless(tmp_path / "run" / "ppo")[-1]
    expected = last["objective/scores/right"] + 0.2 * last["objective/scores/digits"]
    assert last["objective/raw_scores"] == pytest.approx(expected, abs=1e-5)
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_function_reward_is_learned(functions, tmp_path, seed):
    config = config_of("toy_rewards:vowels", iterations=40, batch_size=64, minibatch_size=16, kl_coef=0.001)
    config.seed = seed
    run_ppo(tmp_path / "run", config)
    scores = [row["objective/scores/vowels"] for row in timeless(tmp_path / "run" / "ppo")]
    assert np.mean(scores[-3:]) > np.mean(scores[:3]) + 0.4, scores  # a tenth of that is noise
