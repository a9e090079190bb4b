"""Best of n: of n samples of a policy, the one that a reward model scores highest. It optimises a reward without training.

Shapes: P prompts, N samples of each. rlhf_jax/stages/best_of_n.py is the stage that draws the samples.
"""

import numpy as np

from rlhf_jax import statistics


def kl(n):
    """The KL of best of n to the policy it draws from, in nats: ln n - (n - 1)/n (Stiennon et al. 2020).

    It is exact where no two samples have equal scores, and an upper bound otherwise.
    """
    n = np.asarray(n, np.float64)
    return np.log(n) - (n - 1) / n


def grid(samples: int) -> np.ndarray:
    """Values of n i64[M] from 1 to `samples`, about evenly spaced in ln n: two or three for each doubling of n."""
    return np.unique(np.round(np.geomspace(1, samples, 2 * samples.bit_length() - 1)).astype(int))


def estimate(proxy, values) -> np.ndarray:
    """The expected value of the best of n, f64[P, N] for n = 1 to N: an unbiased estimate from all N samples of a prompt.

    It is the mean, over all subsets of n samples, of the value of the subset's best (Nakano et al. 2021, WebGPT): with samples
    in ascending order of proxy, the sum over i >= n of C(i-1, n-1) / C(N, n) value_i. Samples of equal proxy score are
    equally likely to be the best.

    Args:
        proxy: f[P, N], the scores by which the best is chosen.
        values: f[P, N], what each sample is worth: its gold score, or the proxy score itself.
    """
    proxy, values = np.asarray(proxy, np.float64), np.asarray(values, np.float64)
    total = proxy.shape[1]
    ordered = np.empty_like(values)
    for row, (scores, own) in enumerate(zip(proxy, values)):
        _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
        ordered[row] = np.repeat(np.bincount(place, own) / count, count)
    found = np.empty_like(values)
    for n in range(1, total + 1):
        found[:, n - 1] = ordered[:, n - 1 :] @ _weights(n, total)
    return found


def _weights(n: int, total: int) -> np.ndarray:
    """C(i-1, n-1) / C(total, n) for i = n to total, computed from the ratios of neighbours, so that nothing overflows."""
    i = np.arange(total, n, -1)
    return n / total * np.cumprod(np.append(1.0, (i - n) / (i - 1)))[::-1]


def curve(proxy, judges: dict) -> list[dict]:
    """What the best of n is worth, a row for each n: {n, kl, score and every judge: {value, low, high}}.

    The intervals are over prompts.

    Args:
        proxy: f[P, N], the reward model's scores, by which the best is chosen.
        judges: the name of each other judge and what it says of the samples, f[P, N], such as {"gold": ...}.
    """
    columns = {name: _over_prompts(estimate(proxy, values)) for name, values in ({"score": proxy} | judges).items()}
    return [
        {"n": n, "kl": float(kl(n)), **{name: rows[n - 1] for name, rows in columns.items()}}
        for n in range(1, np.shape(proxy)[1] + 1)
    ]


def _over_prompts(values: np.ndarray) -> list[dict]:
    """The means of f64[P, N] over prompts, one for each n."""
    return [statistics.mean(column).to_json() for column in values.T]
