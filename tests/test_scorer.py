"""Reward models as judges: what they read of a completion, and in which batches."""

import dataclasses
import types

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import tiny

from rlhf_jax import ppo
from rlhf_jax.config import default_config
from rlhf_jax.data.batches import Comparisons
from rlhf_jax.data.fitting import pad_right
from rlhf_jax.data.records import Prompt, Ranking
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.evaluate import scorer as scorer_lib
from rlhf_jax.evaluate.rewards.models import Judge
from rlhf_jax.evaluate.scorer import Scorer
from rlhf_jax.runtime.progress import Interrupt, Stopped
from rlhf_jax.stages import collect, rankings


def run_of(mesh="1x1x1", tokenizer=None, config=tiny.CONFIG):
    fields = default_config()
    fields.unlock()
    fields.prompt_length = fields.completion_length = 24
    return types.SimpleNamespace(
        config=fields,
        mesh=tiny.mesh_of(mesh),
        interrupt=Interrupt(),
        shape=lambda stage: config,
        tokenizer=tokenizer or types.SimpleNamespace(same_ids=lambda other: True),
        path="runs/a",
    )


def comparisons(rankings: int, completions: int, length: int) -> Comparisons:
    """Sequences of random lengths with some repeats, and rankings that have fewer completions than others."""
    rng = np.random.default_rng(0)
    shape = rankings, completions
    lengths = rng.integers(1, length + 1, shape)
    mask = np.arange(length) < lengths[..., None]
    tokens = np.where(mask, rng.integers(2, tiny.VOCAB, (*shape, length)), 0).astype(np.int32)
    tokens[1], mask[1] = tokens[0], mask[0]
    valid = rng.random(shape) < 0.8
    return Comparisons(tokens, mask & valid[..., None], valid.astype(np.int32), valid)


@pytest.mark.parametrize("mesh", ["1x1x1", "2x2x2"])
def test_sequences_of_about_one_length_share_a_batch_and_have_the_scores_of_whole_rows(mesh, monkeypatch, capsys):
    monkeypatch.setattr(scorer_lib, "_BATCH_TOKENS", 192)
    monkeypatch.setattr(scorer_lib, "_widths", lambda: iter((16, 24, 32, 48)))
    run, arrays, read = run_of(mesh), comparisons(12, 3, 40), []
    program = scorer_lib._scores
    monkeypatch.setattr(
        scorer_lib, "_scores", lambda *given: (read.append((given[2].shape, given[3])), program(*given))[1]
    )
    params = tiny.params_of(tiny.CONFIG, 3, "scalar")
    with jax.set_mesh(run.mesh):
        scores = Scorer(run, "reward_model", tiny.place(params, tiny.CONFIG, run.mesh, "scalar")).score_arrays(arrays)
    flat = arrays.tokens.reshape(-1, 40), arrays.mask.reshape(-1, 40)
    whole = np.asarray(jax.jit(ppo.sequence_scores, static_argnums=0)(tiny.CONFIG, params, *flat)).reshape(12, 3)
    np.testing.assert_allclose(scores[arrays.valid], whole[arrays.valid], atol=1e-5)
    assert not scores[~arrays.valid].any()
    both = arrays.valid[0] & arrays.valid[1]
    assert both.any() and np.array_equal(scores[0][both], scores[1][both])  # they are the same, and not nearly so
    distinct = len({ids[kept].tobytes() for ids, kept in zip(arrays.tokens[arrays.valid], arrays.mask[arrays.valid])})
    assert sum(int(np.asarray(mask).any(-1).sum()) for _, mask in read) == distinct < arrays.valid.sum()
    assert sum(rows * width for (rows, width), _ in read) < 0.8 * arrays.valid.sum() * 40
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"scores by reward_model 0/{len(read)}" and printed[-1].startswith(
        f"scores by reward_model {len(read)}/{len(read)}"
    )


@hypothesis.given(
    lengths=st.lists(st.integers(1, 300), max_size=60),
    ways=st.sampled_from([1, 2, 8]),
    tokens=st.sampled_from([64, 512]),
)
def test_batches_hold_each_row_once_in_few_shapes(lengths, ways, tokens):
    lengths = np.array(lengths, int)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorer_lib, "_BATCH_TOKENS", tokens)
        batches = list(scorer_lib.batches_of(lengths, range(len(lengths)), 300, ways))
    rows = [row for _, _, chosen in batches for row in chosen]
    assert sorted(rows) == list(range(len(lengths)))
    assert [int(lengths[row]) for row in rows] == sorted(lengths.tolist(), reverse=True)
    for width, size, chosen in batches:
        assert lengths[chosen].max() <= width <= 300 and len(chosen) <= size and size % ways == 0
        assert size * width <= max(tokens, width) * ways
    # Only the last batch can have fewer rows than its width allows.
    assert all(len(chosen) == size == max(tokens // width, 1) * ways for width, size, chosen in batches[:-1])


def test_an_interrupt_stops_the_scoring_unless_a_validation_needs_it(monkeypatch):
    monkeypatch.setattr(scorer_lib, "_BATCH_TOKENS", 40)
    run, arrays = run_of(), comparisons(3, 2, 40)
    run.interrupt.requested = True
    monkeypatch.setattr(Interrupt, "asked", lambda self: 15)
    monkeypatch.setattr(scorer_lib, "_scores", lambda config, params, tokens, mask: np.ones(len(tokens)))
    with pytest.raises(Stopped, match="scores by reward_model step 1; run the same command"):
        Scorer(run, "reward_model", {}).score_arrays(arrays)
    assert Scorer(run, "reward_model", {}, stops=False).score_arrays(arrays)[arrays.valid].all()


@pytest.mark.parametrize("text", ["오늘은 좋다", "🙂🙃 네"])
def test_a_completion_that_was_cut_inside_a_character_has_the_score_of_its_own_tokens(text, tmp_path, monkeypatch):
    """With a token for each byte, a cut lies inside a character more often than not. The text then ends in U+FFFD."""
    tokenizer = Tokenizer.train([""], 258)
    config = dataclasses.replace(tiny.CONFIG, vocab_size=tokenizer.vocab_size)
    params = tiny.params_of(config, 3, "scalar")
    run, prompt = run_of(tokenizer=tokenizer, config=config), Prompt("질문: ", {})
    whole = tokenizer.encode(text, continues=True)
    cuts = {tokenizer.decode(whole[:end], continues=True): tuple(whole[:end]) for end in range(1, len(whole))}
    texts = [cut for cut in cuts if cut.endswith("\ufffd")]
    cuts = [cuts[cut] for cut in texts]
    assert len(cuts) >= 2
    assert all(tuple(tokenizer.encode(one, continues=True)) != ids for one, ids in zip(texts, cuts))
    before, anew = tokenizer.encode(prompt.prompt), tokenizer.encode_batch(texts, continues=True)
    asked, others = np.split(_scores(config, params, [[*before, *ids] for ids in [*cuts, *anew]]), 2)
    assert np.abs(asked - others).min() > 1e-3

    score = Scorer(run, "reward_model", params)
    np.testing.assert_allclose(score([prompt] * len(cuts), texts, [False] * len(cuts), list(cuts)), asked, atol=1e-5)

    # The command that evaluates reward models reads them from files, where another tokenizer's ids may stand.
    opened = types.SimpleNamespace(tokenizer=tokenizer, template=None, config=config)
    row = {"tokens": [list(ids) for ids in cuts]}
    (requests,) = Judge("it", opened, True, "").encode([ranking_of(prompt, texts, row)])
    assert [request.continuation for request in requests] == cuts
    for damaged in (
        {},
        {"tokens": [[5]] * len(cuts)},
        {"tokens": [["a"]] * len(cuts)},
        {"tokens": [[10**9]] * len(cuts)},
    ):
        (requests,) = Judge("it", opened, True, "").encode([ranking_of(prompt, texts, damaged)])
        assert [list(request.continuation) for request in requests] == anew

    # Rankings of a reward model, and of another one that ranks the same completions from the file.
    item = collect.Sampled(prompt, tuple(texts), (False,) * len(cuts), ("sft",) * len(cuts), tuple(cuts))
    (ranking,) = collect.rank_by_scores(score, [item], "reward_model")
    assert list(np.argsort(ranking.ranks)) == list(np.argsort(-asked))
    (tmp_path / "collect").mkdir()
    rankings.write_rankings(tmp_path / "collect" / "comparisons.train.jsonl", [ranking])
    monkeypatch.setattr(rankings.finished, "checked", lambda path: path)
    run.config.again = {"rankings": "collect"}
    run.folder = lambda stage: tmp_path / stage
    (again,) = collect.completions_of(run, "again", "train")
    (second,) = collect.rank_by_scores(score, [again], "reward_model")
    assert second.ranks == ranking.ranks


def ranking_of(prompt, texts, row) -> Ranking:
    count = len(texts)
    return Ranking(prompt.prompt, tuple(texts), tuple(range(1, count + 1)), None, None, None, (False,) * count, row)


def _scores(config, params, rows) -> np.ndarray:
    tokens, mask = pad_right(rows, 48, 0)
    return np.asarray(jax.jit(ppo.sequence_scores, static_argnums=0)(config, params, tokens, mask))
