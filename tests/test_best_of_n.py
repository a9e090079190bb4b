"""Best of n: the estimator against enumeration, printed KLs, known distributions; the stage on a toy run."""

import itertools
import math

import numpy as np
import pytest

from rlhf_jax import statistics
from rlhf_jax.evaluate import best_of_n

PRINTED = {8: 1.2, 63: 3.2, 128: 3.9, 256: 4.5, 512: 5.2}  # Stiennon et al. 2020


def test_kl_is_as_printed():
    for n, printed in PRINTED.items():
        assert abs(best_of_n.kl(n) - printed) <= 0.05, n
    assert best_of_n.kl(1) == 0


def test_kl_is_that_of_the_largest_of_n_uniform_numbers():
    """Its density is n u^(n-1): the KL is the integral of density times its logarithm."""
    u = (np.arange(200_000) + 0.5) / 200_000
    for n in (2, 5, 30):
        density = n * u ** (n - 1)
        assert best_of_n.kl(n) == pytest.approx(np.mean(density * np.log(density)), rel=1e-4)


def by_enumeration(proxy, values, n) -> float:
    """The mean over all subsets; in one where several share the best proxy score, their mean value."""
    found = []
    for subset in itertools.combinations(range(len(proxy)), n):
        best = max(proxy[i] for i in subset)
        found.append(np.mean([values[i] for i in subset if proxy[i] == best]))
    return float(np.mean(found))


@pytest.mark.parametrize("levels", [1000, 4])  # of proxy scores: hardly any ties, many
def test_the_estimator_is_the_mean_over_all_subsets(levels):
    rng = np.random.default_rng(levels)
    proxy, values = rng.integers(0, levels, (3, 7)) / 10, rng.normal(size=(3, 7))
    found = best_of_n.estimate(proxy, values)
    for row in range(3):
        expected = [by_enumeration(proxy[row], values[row], n) for n in range(1, 8)]
        np.testing.assert_allclose(found[row], expected, rtol=1e-12)
        assert found[row, 0] == pytest.approx(values[row].mean())
    own = best_of_n.estimate(proxy, proxy)
    np.testing.assert_allclose(own[:, -1], proxy.max(1))
    assert (np.diff(own, axis=1) >= -1e-12).all()


def test_the_weights_are_binomial_and_survive_large_numbers():
    for n, total in ((1, 5), (3, 5), (5, 5), (40, 100)):
        exact = [math.comb(i - 1, n - 1) / math.comb(total, n) for i in range(n, total + 1)]
        np.testing.assert_allclose(best_of_n._weights(n, total), exact, rtol=1e-10)
    for n in (1, 100, 30_000, 60_000):
        assert best_of_n._weights(n, 60_000).sum() == pytest.approx(1, rel=1e-9)


def test_few_samples_say_what_many_would():
    """The expected largest of 4 standard normal numbers is 1.0294, from 8 of them, without bias; gold follows by rho."""
    rng = np.random.default_rng(0)
    proxy = rng.normal(size=(40_000, 8))
    gold = 0.6 * proxy + 0.8 * rng.normal(size=proxy.shape)
    assert best_of_n.estimate(proxy, proxy)[:, 3].mean() == pytest.approx(1.0294, abs=0.01)
    assert best_of_n.estimate(proxy, gold)[:, 3].mean() == pytest.approx(0.6 * 1.0294, abs=0.01)


def test_the_curve_has_the_intervals_of_means_over_prompts():
    rng = np.random.default_rng(3)
    proxy, gold = rng.normal(size=(30, 6)), rng.normal(size=(30, 6))
    rows = best_of_n.curve(proxy, {"gold": gold})
    assert [row["n"] for row in rows] == list(range(1, 7)) and rows[3]["kl"] == pytest.approx(math.log(4) - 0.75)
    best = proxy.argmax(1)
    expected = statistics.mean(gold[np.arange(30), best])
    assert rows[-1]["gold"] == pytest.approx(expected._asdict())
    assert set(best_of_n.curve(proxy, {})[0]) == {"n", "kl", "score"}
