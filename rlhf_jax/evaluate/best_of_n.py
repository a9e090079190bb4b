"""Best of n: the sample that a reward model likes best, among n of one policy; RLHF without training.

P prompts, N samples of each. The stage that makes them is in best_of_n_stage.py.
"""

import numpy as np

from rlhf_jax.evaluate import statistics


def kl(n):
    """KL of best of n to the policy it draws from, in nats: ln n - (n - 1)/n (Stiennon et al. 2020).

    Exact where no two samples have equal scores, an upper bound otherwise.
    """
    n = np.asarray(n, np.float64)
    return np.log(n) - (n - 1) / n


def grid(samples: int) -> np.ndarray:
    """i64[M]: values of n from 1 to `samples` that stand about evenly in ln n, two or three to an octave."""
    return np.unique(np.round(np.geomspace(1, samples, 2 * samples.bit_length() - 1)).astype(int))


def estimate(proxy, values) -> np.ndarray:
    """Expected value of the best of n by proxy, f64[P, N] for n = 1 to N: unbiased, from all N samples of a prompt.

    The mean over all subsets of n samples of the value of the subset's best (Nakano et al. 2021, WebGPT):
    with samples in ascending order of proxy, the sum over i >= n of C(i-1, n-1) / C(N, n) value_i. Among samples of
    equal proxy score each is as likely the best.

    Args:
        proxy: f[P, N], by which the best is chosen.
        values: f[P, N], what it is worth: gold, or the proxy itself.
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
    """C(i-1, n-1) / C(total, n) for i = n to total, by the ratio of neighbours: nothing overflows."""
    i = np.arange(total, n, -1)
    return n / total * np.cumprod(np.append(1.0, (i - n) / (i - 1)))[::-1]


def curve(proxy, judges: dict) -> list[dict]:
    """One row for each n: {n, kl, score, and what each judge says}: {value, low, high}, 95 % intervals over prompts.

    Args:
        proxy: f[P, N], the reward model's scores.
        judges: name -> f[P, N], as {"gold": ...}.
    """
    columns = {name: _over_prompts(estimate(proxy, values)) for name, values in ({"score": proxy} | judges).items()}
    return [
        {"n": n, "kl": float(kl(n)), **{name: rows[n - 1] for name, rows in columns.items()}}
        for n in range(1, np.shape(proxy)[1] + 1)
    ]


def _over_prompts(values: np.ndarray) -> list[dict]:
    """Means of f64[P, N] over prompts, for every n."""
    return [statistics.mean(column).to_json() for column in values.T]
