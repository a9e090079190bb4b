"""Over-optimisation: planted coefficients come back, peaks are where a grid finds them, and the laws of normal scores hold."""

import numpy as np
import pytest

from rlhf_jax.evaluate import best_of_n, overoptimization
from rlhf_jax.evaluate.overoptimization import Fit, fit, gains

KL = np.geomspace(0.05, 10, 25)
PLANTED = [(0.490, 0.120), (0.662, 0.090)]  # Gao et al. 2022, figure 3, as read off: proxies of 3M and 3B parameters


def law(form, alpha, beta, kl):
    """The paper's formulas, written out."""
    d = np.sqrt(kl)
    return d * (alpha - beta * d) if form == "best_of_n" else d * (alpha - beta * np.log(d))


@pytest.mark.parametrize("alpha, beta", PLANTED)
def test_planted_coefficients_come_back(alpha, beta):
    curve = law("best_of_n", alpha, beta, KL)
    found = fit(np.append(0, KL), np.append(0, curve))
    assert found == pytest.approx((alpha, beta, 1))
    np.testing.assert_allclose(found.gain(KL), curve)


@pytest.mark.parametrize("alpha, beta", PLANTED)
def test_the_peak_is_where_a_grid_finds_it(alpha, beta):
    grid = np.linspace(0.01, 200, 400_000)
    values = law("best_of_n", alpha, beta, grid)
    kl, gain = Fit(alpha, beta, 1.0).peak
    assert kl == pytest.approx(grid[values.argmax()], rel=2e-3) and gain == pytest.approx(values.max(), rel=1e-6)


def test_peaks_are_those_of_the_papers_first_figure():
    """Read off: best of n with the proxy of 3M has its best gold, 0.50, at 4 to 5 nats; with that of 3B it still rises at 10."""
    kl, gain = Fit(0.490, 0.120, 1.0).peak
    assert 3.9 < kl < 5.1 and gain == pytest.approx(0.50, abs=0.005)
    assert Fit(0.662, 0.090, 1.0).peak[0] > 10
    for never in ((1, 0), (1, -0.1), (-1, 0.1)):
        assert Fit(*never, 1.0).peak is None
    assert Fit(1, 0, 1.0).numbers()["peak_kl"] == np.inf


def test_r_squared_against_its_definition():
    rng = np.random.default_rng(0)
    noisy = law("best_of_n", *PLANTED[0], KL) + rng.normal(0, 0.05, len(KL))
    found = fit(KL, noisy)
    residual = noisy - law("best_of_n", found.alpha, found.beta, KL)
    assert found.r_squared == pytest.approx(1 - residual.var() / noisy.var() - residual.mean() ** 2 / noisy.var())
    for change in (0.01, -0.01):  # it is the least
        assert ((noisy - law("best_of_n", found.alpha + change, found.beta, KL)) ** 2).sum() > (residual**2).sum()
    assert fit(KL, law("rl", 0.6, 0.12, KL)).r_squared < 0.999


def test_too_few_points_are_refused():
    with pytest.raises(ValueError, match="two distinct KLs above 0, not 1"):
        fit([0, 1, 1], [0, 1, 1])


def normal_world(rho: float, deviation: float, samples: int, seed: int = 0):
    """proxy, gold f64[samples]: normal, of correlation rho; gold has this standard deviation."""
    rng = np.random.default_rng(seed)
    proxy = rng.normal(size=samples)
    return proxy, deviation * (rho * proxy + np.sqrt(1 - rho**2) * rng.normal(size=samples))


def test_tilting_by_the_proxy_gains_sqrt_2_rho_deviation_d():
    """pi_t proportional to pi_0 exp(t proxy), weighed exactly on many samples: alpha = sqrt(2) rho sd, beta = 0."""
    rho, deviation = 0.4, 3.0
    proxy, gold = normal_world(rho, deviation, 1_000_000)
    kls, found = [], []
    for t in np.linspace(0.05, 1, 12):
        weights = np.exp(t * proxy)
        weights /= weights.sum()
        kls.append((weights * np.log(weights * len(weights))).sum())
        found.append((weights * gold).sum() - gold.mean())
    fitted = fit(kls, found)
    assert fitted.alpha == pytest.approx(np.sqrt(2) * rho * deviation, rel=0.02)
    assert abs(fitted.beta) < 0.05 and fitted.r_squared > 0.999


def test_best_of_n_gains_1_28_to_1_35_rho_d():
    rho = 0.5
    proxy, gold = (x.reshape(4000, 250) for x in normal_world(rho, 1.0, 1_000_000, seed=1))
    kl, gain = gains(best_of_n.curve(proxy, {"gold": gold}))
    assert kl[0] == gain[0] == 0
    slopes = gain[1:] / np.sqrt(kl[1:])
    assert 1.27 * rho < slopes.min() and slopes.max() < 1.36 * rho
    assert fit(kl, gain).r_squared > 0.99


# --- laws against other laws, on what they were not fitted to ----------------------------------------------------


def test_ln_n_of_a_kl():
    n = np.array([1, 2, 3, 10, 64, 1000])
    np.testing.assert_allclose(overoptimization.log_n(best_of_n.kl(n)), np.log(n), atol=1e-12)


@pytest.mark.parametrize(
    "form, other",
    [
        ("best_of_n", "linear"),
        ("rl", "linear"),
        ("linear", "kl"),
        ("kl", "rl"),
        ("log_n", "kl"),
        ("linear", "constant"),
        ("best_of_n", "rl"),
        ("rl", "best_of_n"),
    ],
)
def test_a_law_predicts_what_it_was_not_fitted_to(form, other):
    d = np.sqrt(KL)
    true = {"linear": 0.3 * d, "kl": 0.1 * KL, "log_n": 0.2 * overoptimization.log_n(KL)}
    curve = true[form] if form in true else law(form, 0.6, 0.15, KL)
    gained = np.tile(curve, (16, 1))  # prompts alike
    assert overoptimization.saved_over_prompts(KL, gained, form, other) > 1e-6
    assert overoptimization.saved_over_prompts(KL, gained, form, form) == 0
    runs = [(KL, start + curve) for start in (0.0, 0.7, -3.0)]  # each from a start of its own
    assert min(overoptimization.saved_over_runs(runs, form, other)) > 1e-6
    assert overoptimization.saved_over_runs(runs, form, form) == [0, 0, 0]


def test_what_is_saved_is_the_squared_error_where_neither_was_fitted():
    """By hand: two prompts, two parts; fitted to n = 1, 3 of one, judged at n = 2, 4 of the other."""
    kl = np.array([0.0, 1.0, 4.0, 9.0])
    gained = np.array([[0.0, 1.0, 2.0, 3.0], [0.0, 2.0, 1.0, 4.0]])
    # alpha d fitted to d = 0, 2: 1.0 of the first, 0.5 of the second; d = 1, 3 of the other: (2, 4) and (1, 3).
    first = (2**2 + 4**2) - ((2 - 1) ** 2 + (4 - 3) ** 2)
    second = (1**2 + 3**2) - ((1 - 0.5) ** 2 + (3 - 1.5) ** 2)
    found = overoptimization.saved_over_prompts(kl, gained, "linear", "constant", folds=2)
    assert found == pytest.approx((first + second) / 2 / 2)
    # Runs: slopes of d = 0, 2 alone, 1.0 and 0.5; the start of each is what its own d = 0, 2 have above the law.
    runs = [(kl, gained[0] + 7), (kl, gained[1] - 1)]
    expected = []
    for own, slope in ((gained[0], 0.5), (gained[1], 1.0)):
        flat, line = own - own[[0, 2]].mean(), own - slope * np.sqrt(kl)
        line = line - line[[0, 2]].mean()
        expected.append((flat[[1, 3]] ** 2).mean() - (line[[1, 3]] ** 2).mean())
    assert overoptimization.saved_over_runs(runs, "linear", "constant") == pytest.approx(expected)


def test_a_beta_below_zero_is_no_law_of_over_optimisation():
    rising = law("best_of_n", 0.3, -0.1, KL)
    for form in ("best_of_n", "rl"):
        assert overoptimization.saved_over_prompts(KL, np.tile(rising, (8, 1)), form, "linear") == 0


def holds(numbers) -> bool:
    """Whether all rows f[laws, 3] are above 0 by Student's t with 2 degrees of freedom."""
    numbers = np.asarray(numbers)
    return bool((numbers.mean(1) > 4.302653 * numbers.std(1, ddof=1) / np.sqrt(3)).all())


def best_of_64(rng, rho, bend, prompts):
    """f[P, M] gained at best_of_n.grid(64): gold is rho proxy - bend (proxy^2 - 1) and noise, in a unit of 0.5."""
    proxy = np.sort(rng.normal(size=(prompts, 64)))
    gold = 0.5 * (rho * proxy - bend * (proxy**2 - 1) + np.sqrt(1 - rho**2) * rng.normal(size=(prompts, 64)))
    found = best_of_n.estimate(proxy, gold)[:, best_of_n.grid(64) - 1]
    return found - found[:, :1]


@pytest.mark.parametrize(
    "rho, bend, prompts, least, most",
    [
        (0.0, 0.0, 64, 0, 1),
        (0.05, 0.0, 64, 0, 1),
        (0.1, 0.0, 64, 0, 1),
        (0.2, 0.0, 64, 0, 1),
        (0.45, 0.15, 256, 16, 20),
    ],
)
def test_the_law_of_best_of_n_holds_where_it_is_true_alone(rho, bend, prompts, least, most):
    """Of 20 sweeps of three seeds; an R^2 of 0.9 of its mean curve is reached where gold is proportional to d, too."""
    rng, kl = np.random.default_rng(7), best_of_n.kl(best_of_n.grid(64))
    found, fits = 0, []
    for _ in range(20):
        seeds = [best_of_64(rng, rho, bend, prompts) for _ in range(3)]
        fits.append(np.mean([fit(kl, gained.mean(0)).r_squared > 0.9 for gained in seeds]))
        found += holds(
            [
                [overoptimization.saved_over_prompts(kl, gained, "best_of_n", against) for gained in seeds]
                for against in ("constant", "linear", "log_n")
            ]
        )
    assert least <= found <= most
    assert rho < 0.2 or np.mean(fits) > 0.9


@pytest.mark.parametrize(
    "alpha, beta, wanders, least, most",
    [(0.0, 0.0, 0.0, 0, 3), (0.3, 0.0, 0.0, 0, 3), (0.0, 0.0, 0.7, 0, 3), (0.2, 0.25, 0.0, 22, 40)],
)
def test_the_law_of_training_holds_where_it_is_true_alone(alpha, beta, wanders, least, most):
    """Of 40 sweeps of three seeds and seven settings, 20 iterations each, noise 0.05, at times of a policy that wanders."""
    rng = np.random.default_rng(0)

    def run():
        d = np.linspace(0.05, 2.6 * rng.uniform(0.8, 1.2), 20)
        noise = rng.normal(size=20)
        for step in range(1, 20):
            noise[step] = wanders * noise[step - 1] + np.sqrt(1 - wanders**2) * noise[step]
        return d**2, 0.1 * rng.normal() + d * (alpha - beta * np.log(d)) + 0.05 * noise

    found = 0
    for _ in range(40):
        settings = [[run() for _ in range(3)] for _ in range(7)]
        found += holds(
            [
                np.mean([overoptimization.saved_over_runs(runs, "rl", against) for runs in settings], axis=0)
                for against in ("constant", "linear")
            ]
        )
    assert least <= found <= most
