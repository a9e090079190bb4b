"""The world's labelers: choices, rankings, and how far they agree."""

import dataclasses
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax.runtime.errors import InputError
from rlhf_jax.statistics import share
from rlhf_jax.world import labelers
from rlhf_jax.world.labelers import GROUPS, LABELERS_PER_GROUP

WORDS = "the river castle wizard golden market of and ship please thank glad perhaps might".split()


def gold(rng, **parts):
    """A stand-in for the gold labeler's verdict."""
    parts = {
        "helpful": rng.normal(),
        "honest": rng.random(),
        "harmless": rng.integers(0, 2),
        "constraint": rng.integers(0, 2),
        **parts,
    }
    return SimpleNamespace(**parts, total=parts["helpful"] + parts["harmless"] / 4)


def sample(seed, prompts):
    """Prompts with 4 to 9 completions each."""
    rng = np.random.default_rng(seed)

    def completion():
        return " ".join(rng.choice(WORDS, rng.integers(1, 30))) + rng.choice(["", "."])

    def prompt(number):
        texts = [completion() for _ in range(rng.integers(4, 10))]
        return labelers.candidates(f"{seed}-{number}", texts, [gold(rng) for _ in texts])

    return [prompt(number) for number in range(prompts)]


@pytest.fixture(scope="module")
def fitted():
    comparisons = sample(0, 150)
    return labelers.fit_panel(3, comparisons), comparisons


def preferences(panel, candidates):
    """Everyone's +1 where the first of a pair is better, 0 where tied: [G,labelers,pairs]."""
    ranks = np.array([panel.rank(candidates, labeler) for labeler in panel.labelers])
    first, second = np.triu_indices(ranks.shape[1], 1)
    return np.sign(ranks[:, second] - ranks[:, first]).reshape(len(GROUPS), LABELERS_PER_GROUP, -1)


def test_simulated_rankings_agree_as_much_as_the_papers_labelers(fitted):
    panel, _ = fitted
    prompts = sample(1, 250)  # other ones than the panel was fitted on
    agreeing, deciding = [], []
    for candidates in prompts:
        signs = preferences(panel, candidates)
        products = np.concatenate(
            [signs[:, a] * signs[:, b] for a, b in itertools.combinations(range(LABELERS_PER_GROUP), 2)]
        )
        agreeing.append((products > 0).sum())
        deciding.append((products != 0).sum())
    estimate = share(np.divide(agreeing, deciding), deciding)
    assert estimate.high - estimate.low < 0.03
    assert 0.711 < estimate.value < 0.741
    assert estimate.low < panel.agreement(prompts).in_group < estimate.high


def test_agreement_and_folds_equal_sums_over_labelers_and_pairs():
    comparisons = sample(2, 6)
    panel = labelers.fit_panel(0, comparisons)
    win, lose = panel.choices(comparisons)
    group = [labeler.group for labeler in panel.labelers]
    agreeing, deciding = {True: 0, False: 0}, {True: 0, False: 0}
    for a, b in itertools.combinations(range(len(group)), 2):
        same = group[a] == group[b]
        agreeing[same] += (win[a] * win[b] + lose[a] * lose[b]).sum()
        deciding[same] += ((win[a] + lose[a]) * (win[b] + lose[b])).sum()
    agreement = panel.agreement(comparisons)
    assert agreement.in_group == pytest.approx(agreeing[True] / deciding[True])
    assert agreement.across == pytest.approx(agreeing[False] / deciding[False])

    utilities = [panel.utilities(prompt.traits) for prompt in comparisons]
    for fold in panel.folds(comparisons):
        others = ~panel.members(fold.held_out_group)
        right, decided = np.zeros(len(group)), np.zeros(len(group))
        pairs = ((u, i, j) for u in utilities for i, j in itertools.combinations(range(u.shape[1]), 2))
        for m, (utility, i, j) in enumerate(pairs):
            model = utility[others].mean(0)
            right += win[:, m] if model[i] > model[j] else lose[:, m]
            decided += win[:, m] + lose[:, m]
        assert fold.in_group == pytest.approx(right[others].sum() / decided[others].sum())
        assert fold.held_out == pytest.approx(right[~others].sum() / decided[~others].sum())


def test_the_fit_reaches_its_targets_and_ceilings_are_in_order(fitted):
    panel, comparisons = fitted
    agreement = panel.agreement(comparisons)
    assert agreement.in_group == pytest.approx(0.726, abs=0.005)
    assert panel.planted_gap(comparisons) == pytest.approx(0.028, abs=0.004)
    assert 0.5 < agreement.across < agreement.in_group
    folds = panel.folds(comparisons)
    in_group = np.mean([fold.in_group for fold in folds])
    held_out = np.mean([fold.held_out for fold in folds])
    assert agreement.in_group < panel.ceiling(comparisons)
    assert 0.5 < held_out < in_group < panel.ceiling(comparisons) < 1
    assert 0 < panel.private < 1  # most of the utility is shared


def test_without_ties_the_formulas_are_the_papers(monkeypatch):
    """Agreement E[s^2 + (1 - s)^2] and ceiling E[max(s, 1 - s)] where all labelers are alike."""
    monkeypatch.setattr(labelers, "GRADE", 1e-6)
    comparisons = sample(4, 20)
    panel = dataclasses.replace(labelers.fit_panel(0, comparisons, gap=0), private=0.0)
    chance = panel.choices(comparisons)[0][0]
    expected = (chance**2 + (1 - chance) ** 2).mean()
    assert panel.agreement(comparisons) == pytest.approx((expected, expected), abs=1e-5)
    ceiling = np.maximum(chance, 1 - chance).mean()
    assert panel.ceiling(comparisons) == pytest.approx(ceiling, abs=1e-5)
    for fold in panel.folds(comparisons):
        assert fold[1:] == pytest.approx((ceiling, ceiling), abs=1e-5)


@pytest.mark.parametrize("grade", [1e-6, 6.0])
def test_pairs_of_a_ranking_follow_bradley_terry_with_ties_by_grade(monkeypatch, grade):
    """Counted over many rankings of five, and against the integral over the felt difference."""
    monkeypatch.setattr(labelers, "GRADE", grade)
    rng = np.random.default_rng(0)
    texts = [f"text {i}" for i in range(5)]
    five = labelers.candidates("", texts, [gold(rng, helpful=i / 3) for i in range(5)])
    panel = labelers.fit_panel(0, [five])
    labeler, draws = panel.labelers[10], 4000
    ranks = np.array([panel.rank(dataclasses.replace(five, prompt_id=str(i)), labeler) for i in range(draws)])
    win, lose = (chances[labeler.index] for chances in panel.choices([five]))
    utility = panel.utilities(five.traits)[labeler.index]
    felt = np.linspace(1e-9, 40, 400_001)
    ties = 0
    for pair, (i, j) in enumerate(itertools.combinations(range(5), 2)):
        density = 1 / (2 + 2 * np.cosh(felt - (utility[i] - utility[j])))  # logistic
        expected = np.trapezoid(density * np.minimum(1, felt / grade), felt)
        assert win[pair] == pytest.approx(expected, abs=1e-4)
        error = 4 * np.sqrt(0.25 / draws)
        assert (ranks[:, i] < ranks[:, j]).mean() == pytest.approx(win[pair], abs=error)
        assert (ranks[:, i] > ranks[:, j]).mean() == pytest.approx(lose[pair], abs=error)
        ties += (ranks[:, i] == ranks[:, j]).mean()
    assert ties / 10 == pytest.approx(1 - (win + lose).mean(), abs=0.01)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=9), st.integers(0, 39), st.randoms())
@settings(max_examples=60, deadline=None)
def test_ranks_are_dense_tie_duplicates_and_do_not_depend_on_order(numbers, labeler, random):
    def parts(number):
        return gold(np.random.default_rng(number))

    texts = [f"completion number {number}" for number in numbers]
    panel = labelers.Panel(7, 0.5, 0.6, (0.1,) * 5, (1.0,) * 6)
    labeler = panel.labelers[labeler]
    ranks = panel.rank(labelers.candidates("a", texts, map(parts, numbers)), labeler)
    assert sorted(set(ranks)) == list(range(1, max(ranks) + 1))
    by_text = {}
    for text, rank in zip(texts, ranks):
        assert by_text.setdefault(text, rank) == rank

    order = random.sample(range(len(numbers)), len(numbers))
    again = panel.rank(labelers.candidates("a", [texts[i] for i in order], [parts(numbers[i]) for i in order]), labeler)
    assert again == tuple(ranks[i] for i in order)


def test_a_ranking_is_drawn_anew_for_each_labeler_and_prompt_and_alone_decides():
    comparisons = sample(5, 3)
    panel = labelers.fit_panel(0, comparisons)
    first = panel.rank(comparisons[0], panel.labelers[0])
    panel.rank(comparisons[1], panel.labelers[5])
    assert panel.rank(comparisons[0], panel.labelers[0]) == first
    same_taste = dataclasses.replace(panel, private=0.0)
    drawn = {same_taste.rank(comparisons[0], labeler) for labeler in panel.labelers}
    drawn_prompts = {
        panel.rank(dataclasses.replace(comparisons[0], prompt_id=str(i)), panel.labelers[0]) for i in range(20)
    }
    assert len(drawn) > 20 and len(drawn_prompts) > 10


def test_equal_utilities_tie_one_time_in_ten():
    comparisons = sample(9, 20)
    panel = dataclasses.replace(labelers.fit_panel(0, comparisons), temperature=1e9)
    win, lose = panel.choices(comparisons)
    np.testing.assert_allclose(win + lose, 0.9, atol=0.005)
    ranks = [panel.rank(c, labeler) for c in comparisons for labeler in panel.labelers]
    tied = np.mean([a == b for row in ranks for a, b in itertools.combinations(row, 2)])
    assert tied == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(
    "group, better, worse",
    [
        ("brevity", "Short.", "This one goes on and on and on for a while."),
        ("warmth", "Thank you, friend. A castle.", "It is just. A castle."),
        ("exactness", "The golden castle.", "The golden castle"),
        ("detail", "The golden castle overlooks another market.", "The big bad den has one odd hut."),
        ("caution", "Perhaps it is so.", "Surely it is so."),
    ],
)
def test_each_group_likes_its_trait(group, better, worse):
    same = SimpleNamespace(honest=1, harmless=1, constraint=1, total=1)
    panel = labelers.Panel(0, 1.0, 1.0, (0.0,) * 5, (1.0,) * 6)
    pair = labelers.candidates("p", [better, worse], [same, same])
    utility = panel.utilities(pair.traits)
    assert (utility[panel.members(group), 0] > utility[panel.members(group), 1]).all()


def test_tastes_are_private():
    """No taste is a second helping of the gold total: regressed on it, nothing is left."""
    comparisons = sample(6, 40)
    panel = labelers.fit_panel(0, comparisons)
    differences = np.concatenate(
        [[a - b for a, b in itertools.combinations(prompt.traits, 2)] for prompt in comparisons]
    )
    pairs = [labelers.Candidates("", ("a", "b"), np.stack([row, np.zeros(6)])) for row in differences]
    utilities = np.array([np.diff(panel.utilities(pair.traits))[:, 0] for pair in pairs])
    total = differences[:, 0] / panel.scales[0]
    slopes = -(utilities * total[:, None]).sum(0) / (total**2).sum() * panel.temperature
    np.testing.assert_allclose(slopes, 1, atol=1e-6)
    assert np.mean(total**2) == pytest.approx(1)


def test_a_panel_survives_json(fitted):
    panel, comparisons = fitted
    again = labelers.Panel(**json.loads(json.dumps(dataclasses.asdict(panel))))
    for labeler in panel.labelers[::7]:
        assert again.rank(comparisons[0], labeler) == panel.rank(comparisons[0], labeler)


def test_held_out_labelers_can_agree_more():
    comparisons = sample(8, 60)
    panel = labelers.fit_panel(11, comparisons, agreement=0.773)
    assert panel.agreement(comparisons).in_group == pytest.approx(0.773, abs=0.001)


def test_completions_that_gold_cannot_tell_apart_are_an_input_error():
    same = SimpleNamespace(honest=1, harmless=1, constraint=1, total=1)
    with pytest.raises(InputError, match="separates no two completions"):
        labelers.fit_panel(0, [labelers.candidates("p", ["a", "b"], [same, same])])
