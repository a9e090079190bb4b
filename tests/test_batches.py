"""Arrays from records: every token in its place, every mask exact, every cut counted."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.data.batches import LengthReport
from rlhf_jax.data.loader import Loader, by_length, in_order, take
from rlhf_jax.data.ranking_batches import batch_rankings, kept_rankings, pack_rankings
from rlhf_jax.data.records import Demonstration, Document, Prompt, Ranking
from rlhf_jax.data.text_batches import batch_demonstrations, batch_prompts, pack_documents
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.model.attention import PREFIX
from rlhf_jax.runtime.errors import InputError

BYTES = Tokenizer.train([], 258)  # One token a byte, so lengths are easy to count.
PAD, EOS = BYTES.pad_id, BYTES.eos_id

ASCII = st.text("abc ", min_size=1, max_size=9)


class WithBos:
    """The byte tokenizer with a leading token, as released models have."""

    bos_id = 257
    _for_chat = False
    encode_starts, encode_prompts = Tokenizer.encode_starts, Tokenizer.encode_prompts

    def __getattr__(self, name):
        return getattr(BYTES, name)


def ids(text):
    return BYTES.encode(text)


def demonstration(prompt, completion):
    return Demonstration(prompt, completion, {})


def ranking(prompt, completions, ranks, finished=None):
    return Ranking(prompt, tuple(completions), tuple(ranks), None, None, None, finished, {})


def check_record(batch):
    """What holds for every Batch."""
    tokens, loss, segments, positions = (batch.tokens, batch.loss_mask, batch.segment_ids, batch.positions)
    assert [array.dtype for array in (tokens, loss, segments, positions)] == [np.int32, np.float32, np.int32, np.int32]
    assert tokens.shape == loss.shape == segments.shape == positions.shape
    assert np.all(loss[positions == 0] == 0) and set(np.unique(loss)) <= {0, 1}
    assert np.all(tokens[segments == 0] == PAD) and np.all(positions[segments == 0] == 0)
    for row in range(len(tokens)):
        real = segments[row] > 0
        assert np.all(np.diff(real.astype(int)) <= 0)  # Padding only on the right.
        for segment in np.unique(segments[row][real]):
            where = np.flatnonzero(segments[row] == segment)
            np.testing.assert_array_equal(positions[row][where], np.arange(len(where)))
            np.testing.assert_array_equal(where, np.arange(where[0], where[-1] + 1))


# Demonstrations.


def test_demonstration_row():
    batch, report = batch_demonstrations([demonstration("ab", "cde")], BYTES, 8)
    assert batch.tokens.tolist() == [[*ids("abcde"), EOS, PAD, PAD]]
    assert batch.loss_mask.tolist() == [[0, 0, 1, 1, 1, 1, 0, 0]]
    assert batch.segment_ids.tolist() == [[1, 1, 1, 1, 1, 1, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 5, 0, 0]]
    assert (report.given, report.dropped, report.cut, report.longest) == (1, 0, 0, 6)


def test_the_prompt_can_be_learned_too():
    batch, _ = batch_demonstrations(
        [demonstration("ab", "cde"), demonstration("abcd", "e")], BYTES, 8, prompt_targets=True
    )
    whole, _ = batch_demonstrations([demonstration("ab", "cde"), demonstration("abcd", "e")], BYTES, 8)
    assert batch.loss_mask.tolist() == [[0, 1, 1, 1, 1, 1, 0, 0]] * 2  # nothing predicts the first token
    assert np.array_equal(batch.tokens, whole.tokens) and whole.loss_mask[1].tolist() == [0, 0, 0, 0, 1, 1, 0, 0]


def test_too_long_demonstrations_are_cut_or_dropped():
    rows = [demonstration("ab", "cd"), demonstration("ab", "cde"), demonstration("abcd", "e")]
    batch, report = batch_demonstrations(rows, BYTES, 5, prompt_length=3)
    assert batch.tokens.tolist() == [[*ids("abcd"), EOS], ids("abcde")]
    assert batch.loss_mask.tolist() == [[0, 0, 1, 1, 1]] * 2
    assert (report.given, report.dropped, report.cut, report.longest) == (3, 1, 1, 6)
    assert str(report) == (
        "2 of 3 kept; 1 left out: the prompt is longer than prompt_length=3 (8 would hold 95%); 1 completions cut: they do "
        "not fit behind their prompt with completion_length=2 (8 would hold 95%); longest 6 tokens"
    )
    dropped, report = batch_demonstrations(rows, BYTES, 5, prompt_length=3, long_completions="drop")
    assert dropped.tokens.tolist() == batch.tokens.tolist()[:1]
    assert (report.given, report.dropped, report.cut) == (3, 2, 0)
    assert "; 1 completions left out: they do not fit behind their prompt with completion_length=2 (8 " in str(report)
    with pytest.raises(InputError, match=r"no completion fits behind its prompt with completion_length=1 \(8 would"):
        batch_demonstrations(rows, BYTES, 4, prompt_length=3, long_completions="drop")


def test_prompts_of_demonstrations_and_rankings_lose_their_beginning_by_the_same_rule():
    rows = [demonstration("abcdef", "gh"), demonstration("ab", "c")]
    batch, report = batch_demonstrations(rows, WithBos(), 7, prompt_length=4, too_long="cut_left")
    assert batch.tokens.tolist() == [[257, *ids("def"), *ids("gh"), EOS], [257, *ids("ab"), *ids("c"), EOS, PAD, PAD]]
    assert batch.loss_mask.tolist() == [[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0]]
    assert report == LengthReport(2, 0, 0, 10, prompts_cut=1)
    assert str(report) == (
        "2 of 2 kept; 1 prompts without their beginning: the prompt is longer than prompt_length=4 (8 would hold 95%); "
        "longest 10 tokens"
    )
    ranked = [ranking("abcdef", ["g", "hi"], [1, 2])]
    comparisons, report = batch_rankings(ranked, BYTES, 6, prompt_length=3, too_long="cut_left")
    assert comparisons.tokens[0].tolist() == [[*ids("defg"), EOS, PAD], [*ids("defhi"), EOS]]
    assert (report.dropped, report.prompts_cut) == (0, 1)
    packed, report = pack_rankings(ranked, BYTES, 6, 3, too_long="cut_left")
    assert packed.tokens.tolist() == [[*ids("defg"), EOS, *ids("hi"), EOS]]
    assert (report.dropped, report.prompts_cut) == (0, 1)


def test_bos_comes_first_and_is_no_target():
    batch, _ = batch_demonstrations([demonstration("a", "b")], WithBos(), 5)
    assert batch.tokens.tolist() == [[257, *ids("ab"), EOS, PAD]]
    assert batch.loss_mask.tolist() == [[0, 0, 1, 1, 0]]


@given(rows=st.lists(st.tuples(ASCII, ASCII), min_size=1, max_size=6), length=st.integers(10, 14))
def test_demonstrations_hold_prompt_completion_and_end(rows, length):
    batch, report = batch_demonstrations([demonstration(*row) for row in rows], BYTES, length)
    check_record(batch)
    cut = 0
    for n, (prompt, completion) in enumerate(rows):
        whole = [*ids(prompt + completion), EOS]
        real, target = batch.segment_ids[n] > 0, batch.loss_mask[n] > 0
        assert batch.tokens[n][real].tolist() == whole[:length]
        assert batch.tokens[n][target].tolist() == whole[len(prompt) : length]
        assert not np.any(target & ~real)
        cut += len(whole) > length
    assert report.cut == cut


# Documents.


def test_documents_are_packed():
    documents = [Document("abc"), Document("d"), Document("efg")]
    batch, report = pack_documents(documents, BYTES, 5)
    assert batch.tokens.tolist() == [[*ids("abc"), EOS, *ids("d")], [EOS, *ids("efg"), EOS]]
    assert batch.segment_ids.tolist() == [[1, 1, 1, 1, 2], [1, 2, 2, 2, 2]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0], [0, 0, 1, 2, 3]]
    assert batch.loss_mask.tolist() == [[0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert (report.given, report.dropped, report.cut, report.longest) == (3, 0, 1, 4)


@given(texts=st.lists(ASCII, min_size=1, max_size=8), length=st.integers(2, 12), bos=st.booleans())
def test_packing_keeps_every_token_once(texts, length, bos):
    tokenizer = WithBos() if bos else BYTES
    batch, report = pack_documents([Document(text) for text in texts], tokenizer, length)
    check_record(batch)
    stream = [i for text in texts for i in ([257] * bos + ids(text) + [EOS])]
    real = batch.segment_ids > 0
    assert batch.tokens[real].tolist() == stream
    assert np.all(real[:-1]) and np.any(real[-1])
    document = np.repeat(np.arange(len(texts)), [len(text) + 1 + bos for text in texts])
    cut = set()
    for row in range(len(batch.tokens)):
        place = np.arange(row * length, min((row + 1) * length, len(stream)))
        same_segment = np.equal.outer(batch.segment_ids[row][real[row]], batch.segment_ids[row][real[row]])
        np.testing.assert_array_equal(same_segment, np.equal.outer(document[place], document[place]))
        if place[-1] + 1 < len(stream) and document[place[-1]] == document[place[-1] + 1]:
            cut.add(document[place[-1]])
    assert report.cut == len(cut)
    assert batch.loss_mask.sum() == len(stream) - np.sum(batch.positions[real] == 0)


# Rankings.


def test_rankings_are_padded_to_k():
    rankings = [ranking("ab", ["c", "d"], [2, 1], (True, False)), ranking("a", ["bcdef", "g", "h"], [1, 3, 3])]
    comparisons, report = batch_rankings(rankings, BYTES, 5)
    assert comparisons.tokens.shape == (2, 3, 5)
    assert comparisons.tokens[0].tolist() == [[*ids("abc"), EOS, PAD], [*ids("abd"), PAD, PAD], [PAD] * 5]
    assert comparisons.tokens[1].tolist() == [ids("abcde"), [*ids("ag"), EOS, PAD, PAD], [*ids("ah"), EOS, PAD, PAD]]
    assert comparisons.mask.sum(axis=2).tolist() == [[4, 3, 0], [5, 3, 3]]
    assert comparisons.ranks.tolist() == [[2, 1, 0], [1, 3, 3]]
    assert comparisons.valid.tolist() == [[True, True, False], [True, True, True]]
    assert (report.given, report.dropped, report.cut, report.longest) == (2, 0, 1, 7)


def test_rankings_with_long_prompts_are_dropped_and_keep_their_own_completions():
    rankings = [ranking("abcd", ["x", "y"], [1, 2]), ranking("a", ["z", "w"], [2, 1])]
    comparisons, report = batch_rankings(rankings, BYTES, 5, prompt_length=3, completions=3)
    assert comparisons.tokens[:, :2, :3].tolist() == [[[*ids("az"), EOS], [*ids("aw"), EOS]]]
    assert comparisons.ranks.tolist() == [[2, 1, 0]]
    assert report.dropped == 1


def test_every_completion_that_is_cut_counts():
    rankings = [ranking("a", ["bcde", "fghi", "j"], [1, 2, 3]), ranking("a", ["bcd", "e"], [1, 2], (False, True))]
    assert batch_rankings(rankings, BYTES, 4)[1].cut == 2  # the third of length 4 fits without its end
    assert pack_rankings(rankings, BYTES, 4, 2)[1].cut == 2


def test_more_completions_than_k_are_refused():
    with pytest.raises(InputError, match="has 3 completions, so completions=2 must be at least 3"):
        batch_rankings([ranking("a", "bcd", [1, 2, 3])], BYTES, 5, completions=2)


@given(data=st.data())
def test_rankings_hold_every_completion(data):
    rankings = []
    for _ in range(data.draw(st.integers(1, 4))):
        completions = data.draw(st.lists(ASCII, min_size=2, max_size=4, unique=True))
        flags = st.lists(st.booleans(), min_size=len(completions), max_size=len(completions))
        rankings.append(
            ranking(
                data.draw(ASCII), completions, range(1, len(completions) + 1), data.draw(st.none() | flags.map(tuple))
            )
        )
    comparisons, _ = batch_rankings(rankings, BYTES, 24)
    assert [a.dtype for a in jax.tree.leaves(comparisons)] == [np.int32, bool, np.int32, bool, np.int32]
    for n, source in enumerate(rankings):
        assert comparisons.valid[n].sum() == len(source.completions)
        np.testing.assert_array_equal(comparisons.valid[n], comparisons.ranks[n] > 0)
        np.testing.assert_array_equal(comparisons.valid[n], comparisons.mask[n].any(axis=1))
        for k, text in enumerate(source.completions):
            ended = source.finished is None or source.finished[k]
            row, mask = comparisons.tokens[n, k], comparisons.mask[n, k]
            assert row[mask].tolist() == ids(source.prompt + text) + [EOS] * ended
            assert np.all(row[~mask] == PAD)
            assert np.all(np.diff(mask.astype(int)) <= 0)


def test_packed_completions_follow_one_copy_of_their_prompt():
    rankings = [ranking("ab", ["c", "de"], [2, 1], (True, False)), ranking("a", "xyz", [1, 3, 3])]
    packed, report = pack_rankings(rankings, BYTES, 5, 3)
    assert packed.tokens.tolist() == [
        [*ids("abc"), EOS, *ids("de"), PAD],
        [*ids("ax"), EOS, *ids("y"), EOS, *ids("z"), EOS],
    ]
    assert packed.segment_ids.tolist() == [[PREFIX, PREFIX, 1, 1, 2, 2, 0], [PREFIX, 1, 1, 2, 2, 3, 3]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 2, 3, 0], [0, 1, 2, 1, 2, 1, 2]]
    assert packed.ends.tolist() == [[3, 5, 0], [2, 4, 6]]
    assert packed.ranks.tolist() == [[2, 1, 0], [1, 3, 3]]
    assert packed.valid.tolist() == [[True, True, False], [True, True, True]]
    assert (report.given, report.dropped, report.cut, report.longest) == (2, 0, 0, 7)


def test_completions_that_do_not_fit_into_the_packed_row_are_left_out():
    rankings = [
        ranking("a", ["bbb", "c", "d"], [1, 2, 3]),
        ranking("a", ["bbb", "cc"], [1, 2]),
        ranking("abcd", ["x", "y"], [1, 2]),
    ]
    packed, report = pack_rankings(rankings, BYTES, 6, 3, row_length=7)
    assert packed.tokens.tolist() == [[*ids("abbb"), EOS, *ids("c"), EOS]]
    assert packed.ranks.tolist() == [[1, 2, 0]]
    assert (report.dropped, report.cut, report.longest) == (2, 2, 9)


def test_a_completion_that_repeats_another_one_once_it_is_cut_is_left_out():
    """Under another rank; of a tie both stay, and a ranking of which one completion is left is dropped."""
    rankings = [
        ranking("a", ["bcdX", "e", "bcdY", "bcd"], [1, 2, 3, 1], (True, True, True, False)),
        ranking("a", ["bcdX", "bcdY"], [1, 2]),
        ranking("a", ["x", "x"], [2, 2]),
    ]
    rows, report = batch_rankings(rankings, BYTES, 4)
    assert rows.tokens.tolist() == [
        [ids("abcd"), [*ids("ae"), EOS, PAD], ids("abcd"), [PAD] * 4],
        [[*ids("ax"), EOS, PAD]] * 2 + [[PAD] * 4] * 2,
    ]
    assert rows.ranks.tolist() == [[1, 2, 1, 0], [2, 2, 0, 0]] and rows.starts.tolist() == [1, 1]
    assert rows.valid.tolist() == [[True, True, True, False], [True, True, False, False]]
    assert report == LengthReport(3, 1, 4, 6, repeats=2)
    assert str(report) == (
        "2 of 3 kept; 4 completions cut: they do not fit behind their prompt with completion_length=1 (8 would hold 95%); "
        "2 completions left out because they then repeat another one; longest 6 tokens"
    )
    packed, report = pack_rankings(rankings, BYTES, 4, 2)
    assert packed.tokens.tolist() == [
        [*ids("abcd"), *ids("e"), EOS, *ids("bcd")],
        [*ids("ax"), EOS, *ids("x"), EOS, *[PAD] * 4],
    ]
    assert packed.ranks.tolist() == rows.ranks.tolist() and packed.valid.tolist() == rows.valid.tolist()
    assert report == LengthReport(3, 1, 4, 9, repeats=2)


def test_completions_that_do_not_fit_are_left_out_where_the_config_says_so():
    rankings = [
        ranking("a", ["bcd", "e", "f", "bcX"], [1, 2, 3, 4]),
        ranking("a", ["bcd", "e"], [1, 2]),
        Ranking("a", ("bcd",), (1,), None, None, None, None, {}, (1.0,)),
    ]
    rows, report = batch_rankings(rankings, BYTES, 4, long_completions="drop")
    assert rows.tokens[:, :2].tolist() == [[[*ids("ae"), EOS, PAD], [*ids("af"), EOS, PAD]]]
    assert (rows.ranks[0, :2].tolist(), report.dropped, report.cut, report.long_completions.count) == ([2, 3], 2, 0, 4)
    packed, report = pack_rankings(rankings, BYTES, 4, 2, long_completions="drop")
    assert packed.tokens.tolist() == [[*ids("ae"), EOS, *ids("f"), EOS]]
    kept, again = kept_rankings(rankings, BYTES, 4, 2, long_completions="drop")
    assert [one.completions for one in kept] == [("e", "f")] and again.dropped == report.dropped == 2
    with pytest.raises(InputError, match="in no ranking do two completions fit into 3 tokens with their prompt; raise"):
        batch_rankings(rankings[1:], BYTES, 3, long_completions="drop")


def test_the_length_that_the_report_suggests_holds_what_it_says():
    rows = [demonstration("p", "x" * size) for size in range(1, 101)]
    report = batch_demonstrations(rows, BYTES, 41, prompt_length=1)[1]
    long = report.long_completions
    assert (long.count, long.limit, long.enough, long.share) == (61, 40, 96, 0.95)
    again = batch_demonstrations(rows, BYTES, 1 + long.enough, prompt_length=1)[1]
    assert again.cut == 5 and again.long_completions.share == 1.0
    whole = batch_demonstrations(rows, BYTES, 1 + again.long_completions.enough, prompt_length=1)[1]
    assert whole.cut == 0 and str(whole) == "100 of 100 kept; longest 102 tokens"


@given(data=st.data(), length=st.integers(4, 8), too_long=st.sampled_from(["drop", "cut_left"]))
def test_no_pair_is_of_equal_rows_and_all_that_are_not_stay(data, length, too_long):
    """By a loop over the strings; both layouts and `kept_rankings` have the same."""
    rankings = []
    for _ in range(data.draw(st.integers(1, 5))):
        completions = data.draw(st.lists(st.text("ab", min_size=1, max_size=7), min_size=2, max_size=5))
        ranks = data.draw(st.lists(st.integers(1, 3), min_size=len(completions), max_size=len(completions)))
        rankings.append(ranking(data.draw(st.text("ab", min_size=1, max_size=4)), completions, ranks))
    expected = []
    for one in rankings:
        if len(one.prompt) > 3 and too_long == "drop":
            continue
        seen = {}
        for text, rank in zip(one.completions, one.ranks):
            seen.setdefault((one.prompt[-3:] + text + ".")[:length], []).append(rank)
        own = [(row, rank) for row, ranks in seen.items() for rank in ranks if rank == ranks[0]]
        expected += [sorted(own)] * (len(own) > 1)
    kept, report = kept_rankings(rankings, BYTES, length, 3, too_long)
    assert len(kept) == len(expected) == report.given - report.dropped
    if not kept:
        for build in (batch_rankings, pack_rankings):
            with pytest.raises(InputError):
                build(rankings, BYTES, length, 3, too_long=too_long)
        return
    rows, report = batch_rankings(rankings, BYTES, length, 3, too_long=too_long)
    packed, packed_report = pack_rankings(rankings, BYTES, length, 3, too_long=too_long)

    def text(row):
        return "".join("." if token == EOS else BYTES.decode([token]) for token in row.tolist())

    for n, own in enumerate(expected):
        of_rows = [(text(rows.tokens[n, k][rows.mask[n, k]]), rows.ranks[n, k]) for k in np.flatnonzero(rows.valid[n])]
        prompt = packed.tokens[n][packed.segment_ids[n] == PREFIX]
        assert len(prompt) == rows.starts[n]
        of_packed = [
            (text(np.append(prompt, packed.tokens[n][packed.segment_ids[n] == k + 1])), packed.ranks[n, k])
            for k in np.flatnonzero(packed.valid[n])
        ]
        assert sorted(of_rows) == sorted(of_packed) == own
        assert list(kept[n].ranks) == rows.ranks[n][rows.valid[n]].tolist()
    assert (report.dropped, report.repeats, report.cut) == (
        packed_report.dropped,
        packed_report.repeats,
        packed_report.cut,
    )


# Prompts.


def test_prompts_are_padded_on_the_left():
    prompts = [Prompt(text, {}) for text in ("ab", "abcde", "abcd")]
    batch, report = batch_prompts(prompts, BYTES, 4)
    assert batch.tokens.tolist() == [[PAD, PAD, *ids("ab")], ids("abcd")]
    assert batch.mask.tolist() == [[False, False, True, True], [True] * 4]
    assert batch.index.tolist() == [0, 2] and batch.index.dtype == np.int32
    assert (report.given, report.dropped, report.cut, report.longest) == (3, 1, 0, 5)


def test_prompts_cut_from_the_left_keep_their_end_and_bos():
    prompts = [Prompt("abcde", {}), Prompt("ab", {})]
    batch, report = batch_prompts(prompts, BYTES, 3, "cut_left")
    assert batch.tokens.tolist() == [ids("cde"), [PAD, *ids("ab")]]
    assert (report.dropped, report.cut, report.prompts_cut) == (0, 0, 1)
    batch, _ = batch_prompts(prompts, WithBos(), 3, "cut_left")
    assert batch.tokens.tolist() == [[257, *ids("de")], [257, *ids("ab")]]
    batch, _ = batch_prompts(prompts, WithBos(), 1, "cut_left")
    assert batch.tokens.tolist() == [[257], [257]]


def test_sampling_and_training_see_the_same_prompt_tokens():
    batch, _ = batch_demonstrations([demonstration("ab c", " d")], WithBos(), 10)
    prompts, _ = batch_prompts([Prompt("ab c", {})], WithBos(), 7)
    start = int(np.argmax(batch.loss_mask[0]))
    assert batch.tokens[0, :start].tolist() == prompts.tokens[0][prompts.mask[0]].tolist()


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12), size=st.integers(1, 5))
def test_batches_by_length_hold_the_rows_asked_for_without_their_shared_padding(lengths, size):
    prompts, _ = batch_prompts([Prompt("abcabcabc"[:length], {}) for length in lengths], BYTES, 10)
    rows = [*range(len(lengths)), 0]  # A row can be wanted twice.
    seen, longest_before = [], 0
    for chosen, batch in by_length(prompts, rows, size, multiple=4):
        assert batch.tokens.shape == batch.mask.shape and len(batch.tokens) == size
        width = batch.tokens.shape[1]
        for row, tokens, mask in zip(chosen, batch.tokens, batch.mask):
            assert tokens[mask].tolist() == prompts.tokens[row][prompts.mask[row]].tolist()
            assert mask[-1] and mask.sum() >= longest_before
        longest = max(lengths[row] for row in chosen)
        assert width == min(10, -(-longest // 4) * 4)
        longest_before = longest
        seen += chosen.tolist()
    assert sorted(seen) == sorted(rows)


# Bad input.


@pytest.mark.parametrize(
    "build, words",
    [
        (
            lambda: batch_prompts([Prompt("abc", {})], BYTES, 2),
            "all 1 prompts are longer than prompt_length=2: raise it to at least 3",
        ),
        (lambda: batch_demonstrations([demonstration("abc", "d")], BYTES, 3), "all 1 prompts"),
        (lambda: batch_rankings([ranking("abc", "de", [1, 2])], BYTES, 3), "all 1 prompts"),
        (lambda: batch_demonstrations([], BYTES, 3), "no records"),
        (lambda: batch_rankings([], BYTES, 3), "no records"),
        (lambda: pack_rankings([ranking("abc", "de", [1, 2])], BYTES, 3, 2), "all 1 prompts"),
        (lambda: pack_rankings([], BYTES, 3, 2), "no records"),
        (
            lambda: batch_rankings([ranking("a", ["bcd", "bce"], [1, 2])], BYTES, 3),
            "completions are equal .* raise completion_length",
        ),
        (
            lambda: pack_rankings([ranking("a", ["bcd", "bce"], [1, 2])], BYTES, 3, 1),
            "completions are equal .* raise completion_length",
        ),
        (
            lambda: pack_rankings([ranking("a", ["bcd", "e"], [1, 2])], BYTES, 5, 1, 4),
            "fit into a row of 4 tokens; raise the field length",
        ),
        (lambda: batch_prompts([], BYTES, 3), "no records"),
        (lambda: pack_documents([], BYTES, 3), "no documents"),
        (lambda: batch_demonstrations([demonstration("a", "b")], BYTES, 3, 3), "prompt_length=3 must be from 1 to 2"),
    ],
)
def test_what_cannot_be_batched_is_an_input_error(build, words):
    with pytest.raises(InputError, match=words):
        build()


# The loader.


def rows_of(loader, steps):
    return np.concatenate([loader.rows(step) for step in steps])


@given(total=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 2**40), shuffle=st.booleans())
def test_every_epoch_shows_every_example_once(total, batch_size, seed, shuffle):
    loader = Loader(np.arange(total), batch_size, seed, name="x", shuffle=shuffle)
    epochs = 3
    stream = rows_of(loader, range(loader.steps(epochs)))[: epochs * total]
    for epoch in stream.reshape(epochs, total):
        assert sorted(epoch) == list(range(total))
    if not shuffle:
        assert stream.tolist() == list(range(total)) * epochs


@given(steps=st.lists(st.integers(0, 10**12), min_size=2, max_size=6), seed=st.integers(0, 99))
def test_a_batch_depends_on_seed_and_step_alone(steps, seed):
    examples = {"a": np.arange(23), "b": np.arange(46).reshape(23, 2)}
    first = Loader(examples, 5, seed, name="x")
    batches = {step: first.batch(step) for step in steps}
    for step in reversed(steps):
        again = Loader(examples, 5, seed, name="x").batch(step)
        for name in examples:
            np.testing.assert_array_equal(batches[step][name], again[name])
        np.testing.assert_array_equal(again["b"][:, 0], 2 * again["a"])


def test_epochs_seeds_and_names_have_orders_of_their_own():
    def order(epoch=0, seed=0, name="sft", batch_size=50):
        return Loader(np.arange(50), batch_size, seed, name=name).rows(epoch).tolist()

    orders = [order(), order(epoch=1), order(seed=1), order(name="ptx"), order(seed=-1)]
    assert len(set(map(tuple, orders))) == 5
    assert all(np.mean(np.equal(orders[0], other)) < 0.3 for other in orders[1:])
    halves = Loader(np.arange(50), 25, 0, name="sft")
    assert rows_of(halves, [0, 1]).tolist() == order()


def test_shuffling_is_uniform():
    loader = Loader(np.arange(4), 4, 3, name="x")
    counts = np.zeros((4, 4))
    for epoch in range(2000):
        counts[np.arange(4), loader.rows(epoch)] += 1
    assert np.all(np.abs(counts / 2000 - 0.25) < 0.05)


def test_the_order_never_changes_between_versions():
    assert Loader(np.arange(8), 8, 0, name="sft").rows(0).tolist() == [7, 2, 0, 6, 3, 4, 1, 5]


def test_records_go_through_the_loader():
    batch, _ = batch_demonstrations([demonstration("ab", c) for c in "xyz"], BYTES, 6)
    loaded = Loader(batch, 2, 0, name="sft").batch(0)
    assert type(loaded) is type(batch) and loaded.tokens.shape == (2, 6)
    assert take(batch, np.array([2])).tokens[0, 2] == ids("z")[0]


@pytest.mark.parametrize(
    "batch_size, epochs, steps", [(4, 1, 3), (5, 1, 2), (20, 1, 1), (4, 2, 5), (4, 0.5, 2), (100, 0.01, 1)]
)
def test_steps_of_epochs(batch_size, epochs, steps):
    assert Loader(np.arange(10), batch_size, 0, name="x").steps(epochs) == steps


def test_evaluation_sees_everything_once():
    batch, _ = batch_demonstrations([demonstration("ab", c * 3) for c in "vwxyz"], BYTES, 8)
    batches = list(in_order(batch, 2))
    assert [len(b.tokens) for b in batches] == [2, 2, 2]
    np.testing.assert_array_equal(np.concatenate([b.tokens for b in batches])[:5], batch.tokens)
    assert not batches[-1].loss_mask[1].any() and not batches[-1].segment_ids[1].any()


def test_loaders_need_examples_of_one_length():
    with pytest.raises(InputError, match="sft: 0 examples"):
        Loader(np.zeros((0, 3)), 4, 0, name="sft")
    with pytest.raises(InputError, match="batches of 0"):
        Loader(np.zeros((1, 3)), 0, 0, name="sft")
    with pytest.raises(ValueError, match="differ"):
        Loader({"a": np.zeros(3), "b": np.zeros(4)}, 4, 0, name="sft")
