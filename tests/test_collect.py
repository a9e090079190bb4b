"""Which samples become the completions of a prompt."""

import random
import types

import hypothesis
import hypothesis.strategies as st

from rlhf_jax.data.records import Prompt, Ranking
from rlhf_jax.stages import collect
from rlhf_jax.world import World, gold, labelers

WORLD = World(0)

TEXTS = ["", " ", "a", "b", "c", "d", "e"]  # few, so that equal ones meet


@hypothesis.given(
    st.lists(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=6), min_size=2, max_size=5),
    st.integers(2, 6),
    st.integers(0, 4),
    st.integers(0, 2**16),
)
def test_a_prompt_has_no_text_twice_and_the_borrowed_come_last(samples, k, borrowed, seed):
    borrowed = min(borrowed, k - 1)
    everyone = [[(text, True, f"model {n}") for text in texts] for n, texts in enumerate(samples)]
    own = set(samples[0]) - {"", " "}
    chosen = collect.choose(everyone[0], everyone, k, borrowed, random.Random(seed))
    texts = [text for text, _, _ in chosen]
    foreign = [name.endswith(" of another prompt") for _, _, name in chosen]
    assert len(set(texts)) == len(texts) and all(map(str.strip, texts))
    assert foreign == sorted(foreign) and sum(foreign) <= borrowed
    assert sum(not one for one in foreign) == min(len(own), k - borrowed)
    assert not any(text in own for text, one in zip(texts, foreign) if one)


def test_the_same_text_borrowed_twice_is_there_once():
    """Two draws from a world where everybody else says one thing."""
    everyone = [[("own", True, "sft")], *([("same", False, "base")] for _ in range(9))]
    for seed in range(20):
        chosen = collect.choose(everyone[0], everyone, 4, 2, random.Random(seed))
        assert chosen in ([("own", True, "sft"), ("same", False, "base of another prompt")], [("own", True, "sft")])


def test_only_a_line_feed_ends_a_collected_ranking(tmp_path):
    odd = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei"
    texts = (f"  {odd}\n", f"{odd}\r\n")
    ranking = Ranking(odd, texts, (1, 2), odd, odd, (odd, odd), (True, False), {"prompt": odd})
    collect.write_rankings(tmp_path / "comparisons.train.jsonl", [ranking, ranking])
    found = collect.read_rankings(tmp_path / "comparisons.train.jsonl")
    assert [(row.prompt, row.completions, row.labeler, row.group, row.models) for row in found] == 2 * [
        (odd, texts, odd, odd, (odd, odd))
    ]
    assert [row.row["source"] for row in found] == 2 * [{"prompt": odd}]


def test_more_labelers_rank_each_prompt_and_the_first_is_the_same():
    """Each by a person of the staff, none twice, and the ranks are those of that person."""
    rows = WORLD.instructions("train", 30)
    sampled = [
        collect.Sampled(
            Prompt(row["instruction"], row), (row["output"], "no .", "you fool ."), (True,) * 3, ("sft",) * 3, None
        )
        for row in rows
    ]
    judged = [
        labelers.candidates(
            item.prompt.row["id"],
            item.completions,
            [gold.score(WORLD, item.prompt.row, text) for text in item.completions],
        )
        for item in sampled
    ]
    run, panel, groups = types.SimpleNamespace(seed=7), labelers.fit_panel(0, judged), {"warmth", "detail"}
    one = collect.rank_by_panel(run, panel, sampled, judged, groups)
    three = collect.rank_by_panel(run, panel, sampled, judged, groups, 3)
    assert three[::3] == one and len(three) == 3 * len(rows)
    staff = {labeler.name: labeler for labeler in panel.labelers}
    for place, judged_one in enumerate(judged):
        own = three[3 * place : 3 * place + 3]
        assert len({row.labeler for row in own}) == 3 and {row.group for row in own} <= groups
        assert all(row.ranks == panel.rank(judged_one, staff[row.labeler]) for row in own)


def test_the_gold_labeler_ranks_by_its_total_and_ties_what_is_equally_good():
    rows = WORLD.instructions("train", 30)
    texts = [(row["output"], "no .", "you fool .", "no  .") for row in rows]
    sampled = [
        collect.Sampled(Prompt(row["instruction"], row), own, (True,) * 4, ("sft",) * 4, None)
        for row, own in zip(rows, texts)
    ]
    corpus = types.SimpleNamespace(gold=lambda prompt, *said: gold.score(WORLD, prompt.row, *said))
    found = collect.rank_by_scores(collect.gold_totals(types.SimpleNamespace(corpus=corpus)), sampled, "gold")
    for row, own, ranking in zip(rows, texts, found):
        totals = [gold.score(WORLD, row, text).total for text in own]
        assert ranking.labeler == "gold" and ranking.ranks[1] == ranking.ranks[3]
        for total, rank in zip(totals, ranking.ranks):
            assert rank == 1 + len({other for other in totals if other > total})
    assert sum(ranking.ranks[0] == 1 for ranking in found) > 25  # demonstrations are good answers
