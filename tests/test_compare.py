"""Comparisons of policies: rates and ratings against closed forms and plain loops, judges that fail, files back and forth."""

import dataclasses
import json
import math
import pathlib
import random
import sys

import numpy as np
import pytest
import scipy.optimize
import tiny
from scipy.special import expit
from toy import get_config as toy_config

from rlhf_jax import hf, ppo, sources
from rlhf_jax import run as run_lib
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.evaluate import compare, outside
from rlhf_jax.evaluate import scorer as scorer_lib
from rlhf_jax.evaluate.compare import __main__ as command
from rlhf_jax.evaluate.compare import bootstrap, judges, policies, published, rates, ratings
from rlhf_jax.evaluate.compare.judgments import Comparison, Judgment, comparisons
from rlhf_jax.report.figures import of_comparison
from rlhf_jax.runtime import files, finished
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.statistics import share


def judgment(prompt, first, second, score, **more):
    return Judgment(prompt, 0, first, second, score, more.pop("lengths", (1, 1)), **more)


# --- ratings ---


def wins_of(strengths, games, seed=0):
    random_ = np.random.default_rng(seed)
    size = len(strengths)
    wins = np.zeros((size, size))
    for i in range(size):
        for j in range(i):
            wins[i, j] = random_.binomial(games, expit(strengths[i] - strengths[j]))
            wins[j, i] = games - wins[i, j]
    return wins


def zermelo(wins, rounds=20_000):
    """The minorise-maximise loop of Zermelo (1929) and Hunter (2004), term by term."""
    size = len(wins)
    worth = [1.0] * size
    for _ in range(rounds):
        for i in range(size):
            games = sum((wins[i][j] + wins[j][i]) / (worth[i] + worth[j]) for j in range(size) if j != i)
            worth[i] = sum(wins[i][j] for j in range(size) if j != i) / games
        scale = math.exp(sum(map(math.log, worth)) / size)
        worth = [value / scale for value in worth]
    return np.log(worth)


def test_ratings_are_those_of_the_textbook_loop():
    wins = wins_of([1.0, 0.2, -0.4, -0.8], 40) + 0.5 * (1 - np.eye(4))  # half wins, too
    np.testing.assert_allclose(ratings.fit(wins[None])[0], zermelo(wins, 2000), atol=1e-8)


def test_two_policies_are_apart_by_the_log_odds_and_elo_by_400_for_ten_to_one():
    rows = [Comparison(n, float(n >= 10), 0) for n in range(110)]  # 100 to 10
    found = ratings.rate({("a", "b"): rows}, ["a", "b"])
    assert found["a"].value.value - found["b"].value.value == pytest.approx(math.log(10))
    assert found["a"].elo.value - found["b"].elo.value == pytest.approx(400)
    assert found["a"].elo.value + found["b"].elo.value == pytest.approx(2000)


def test_intervals_of_ratings_hold_the_truth_about_as_often_as_they_say():
    strengths, covered = np.array([0.5, 0.0, -0.5]), 0
    for seed in range(60):
        random_ = np.random.default_rng(seed)
        found = {
            (str(i), str(j)): [
                Comparison(n, float(random_.random() < expit(strengths[i] - strengths[j])), 0) for n in range(80)
            ]
            for i in range(3)
            for j in range(i + 1, 3)
        }
        value = ratings.rate(found, ["0", "1", "2"], rounds=200)["0"].value
        covered += value.low <= strengths[0] <= value.high
    assert 51 <= covered <= 60  # 57 are expected; fewer than 51 once in 200 times


def test_who_wins_or_loses_everything_has_no_finite_rating_and_the_others_have():
    mixed = [Comparison(n, n % 2, 0) for n in range(20)]
    always, never = [Comparison(n, 1, 0) for n in range(20)], [Comparison(n, 0, 0) for n in range(20)]
    found = ratings.rate(
        {("top", "a"): always, ("top", "b"): always, ("a", "b"): mixed, ("low", "a"): never}, ["top", "a", "b", "low"]
    )
    assert found["top"].value is None and "won every" in found["top"].why
    assert found["low"].value is None and "lost every" in found["low"].why
    assert found["a"].value.value == pytest.approx(0) and found["a"].why == ""


def test_two_groups_without_a_win_between_them_are_not_rated_together():
    mixed, always = [Comparison(n, n % 2, 0) for n in range(20)], [Comparison(n, 1, 0) for n in range(20)]
    found = ratings.rate({("a", "b"): mixed, ("c", "d"): mixed, ("a", "c"): always, ("e", "a"): mixed}, [*"abcde"])
    assert [name for name, rating in found.items() if rating.value] == ["a", "b", "e"]
    assert "no chain of wins" in found["c"].why
    nobody = ratings.rate({("a", "b"): always}, ["a", "b"])
    assert all(rating.value is None and rating.why for rating in nobody.values())


def test_a_sample_without_a_number_counts_below_and_above():
    values = np.arange(1000.0)
    assert bootstrap.interval(500, values)[1:] == (24, 975)
    values[500:520] = np.nan
    assert bootstrap.interval(500, values)[1:] == (4, 995)
    values[520:540] = np.nan
    assert bootstrap.interval(500, values)[1:] == (-math.inf, math.inf)


# --- rates ---


def test_win_rate_has_ties_as_halves_and_an_interval_over_prompts():
    rows = [Comparison(n // 2, score, 0) for n, score in enumerate([1, 1, 0.5, 0, 1, 0.5, 0, 0])]
    assert rates.win_rate(rows) == share([row.score for row in rows], units=[0, 0, 1, 1, 2, 2, 3, 3])
    assert rates.win_rate(rows).value == 0.5 and rates.ties(rows) == 0.25


def planted(theta, phi, count, seed=0):
    random_ = np.random.default_rng(seed)
    longer = random_.normal(30, 40, count).round()
    chance = expit(theta + phi * np.tanh(longer / longer.std(ddof=1)))
    return [Comparison(n, float(random_.random() < p), int(d)) for n, (p, d) in enumerate(zip(chance, longer))]


def test_the_rate_at_equal_length_is_the_planted_one_and_that_of_a_plain_search():
    rows = planted(-0.3, 2.0, 4000)
    found = rates.length_controlled(rows, rounds=200)
    assert rates.win_rate(rows).value > 0.6  # the longer texts of a worse policy
    assert found.rate.low < expit(-0.3) < found.rate.high < 0.5
    assert found.coefficient.low < 2 < found.coefficient.high
    d = np.array([row.longer for row in rows])
    y, x = np.array([row.score for row in rows]), np.tanh(d / np.std(d, ddof=1))

    def objective(w):
        p = expit(w[0] + w[1] * x)
        return -np.sum(y * np.log(p) + (1 - y) * np.log(1 - p)) + (w[0] ** 2 + w[1] ** 2) / 200

    best = scipy.optimize.minimize(objective, [0, 0], tol=1e-12).x
    assert (found.rate.value, found.coefficient.value) == pytest.approx((expit(best[0]), best[1]), abs=1e-5)


def test_several_pairs_of_a_prompt_make_no_rate_at_equal_length_surer():
    rows = planted(-0.3, 2.0, 200)
    once, twice = rates.length_controlled(rows, 100), rates.length_controlled(rows + rows, 100)
    assert twice.rate == pytest.approx(once.rate, abs=2e-3)  # the penalty weighs half as much


def test_several_pairs_of_a_prompt_make_no_position_surer():
    rows = [
        judgment(n, *order, float((n % 7 < 4) == (order[0] == "a")) if n % 5 else 1.0)
        for n in range(40)
        for order in (("a", "b"), ("b", "a"))
    ]
    again = [dataclasses.replace(row, number=1) for row in rows]
    once, twice = rates.positions(rows)[""], rates.positions(rows + again)[""]
    assert twice.first == pytest.approx(once.first) and twice.agreement == pytest.approx(once.agreement)
    assert once.first.high - once.first.low < 0.5 and twice.pairs == 80


def test_the_rate_at_equal_length_of_the_other_policy_is_the_rest():
    rows = planted(0.4, -1.0, 300)
    other = [Comparison(row.prompt, 1 - row.score, -row.longer) for row in rows]
    one, rest = rates.length_controlled(rows, 50).rate, rates.length_controlled(other, 50).rate
    assert one.value + rest.value == pytest.approx(1)
    assert one.low + rest.high == pytest.approx(1)


def test_the_rate_at_equal_length_is_finite_where_one_always_wins_and_absent_without_lengths():
    always = [Comparison(n, 1.0, n) for n in range(30)]
    assert 0.5 < rates.length_controlled(always, 20).rate.value < 1
    same = [Comparison(n, n % 4 / 3, 0) for n in range(40)]
    assert rates.length_controlled(same, 20).rate.value == pytest.approx(0.5)
    assert rates.length_controlled([Comparison(0, 1.0, None)]) is None


def test_a_judge_who_looks_at_texts_alone_favours_no_position_whichever_is_better():
    """The better policy stands first three times as often."""
    rows = [judgment(n, *(("a", "b", 1.0) if n % 4 else ("b", "a", 0.0))) for n in range(200)]
    found = rates.positions(rows)[""]
    assert found.first.value == pytest.approx(0.5) and found.favours is None and found.agreement is None


def test_a_judge_who_favours_a_position_is_found_and_one_who_agrees_with_itself_is_not():
    lean = [
        judgment(n, *order, 1.0 if n % 10 < 3 else float(order[0] == "a"), judge="lean")
        for n in range(200)
        for order in (("a", "b"), ("b", "a"))
    ]
    fair = [
        judgment(n, *order, float((order[0] == "a") == (n % 3 > 0)), judge="fair")
        for n in range(200)
        for order in (("a", "b"), ("b", "a"))
    ]
    unknown = [judgment(n, "a", "b", 1.0, judge="unknown", ordered=False) for n in range(9)]
    found = rates.positions(lean + fair + unknown)
    assert set(found) == {"lean", "fair"}
    assert found["lean"].favours == "first" and found["lean"].first.value == pytest.approx(0.65)
    assert found["fair"].favours is None and found["fair"].first.value == 0.5 and found["fair"].pairs == 200
    assert found["fair"].agreement.value == 1 and found["lean"].agreement.value == pytest.approx(0.7)


def test_both_orders_and_several_judges_are_one_comparison():
    said = [
        judgment("p", "a", "b", 1.0, lengths=(5, 3)),
        judgment("p", "b", "a", 1.0, lengths=(3, 5)),
        judgment("q", "b", "a", 0.25, lengths=(2, 9)),
    ]
    assert comparisons(said, ["a", "b"]) == {("a", "b"): [Comparison("p", 0.5, 2), Comparison("q", 0.75, 7)]}
    assert comparisons(said, ["b", "a"]) == {("b", "a"): [Comparison("p", 0.5, -2), Comparison("q", 0.25, -7)]}


# --- policies ---


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def completions(*texts):
    return [{"prompt": f"p{n}", "completion": text} for n, text in enumerate(texts)]


@pytest.fixture
def three(tmp_path):
    """Files of completions of three policies: long, middle and short ones."""
    return [
        write(tmp_path / f"{name}.jsonl", completions(*(word * size for n in range(12))))
        for name, word, size in (("long", "aaaa", 3), ("middle", "bbb", 2), ("short", "c", 1))
    ]


def test_completions_are_joined_by_prompt_and_place_and_those_without_a_partner_are_counted(tmp_path):
    first = write(tmp_path / "a.jsonl", completions("1", "2") + [{"prompt": "p0", "completion": "3"}])
    rows = [
        {"instruction": name, "output": text} for name, text in (("p0", "x"), ("p0", "y"), ("p0", "z"), ("p9", "-"))
    ]
    (tmp_path / "b.json").write_text(json.dumps(rows))
    found, alone = policies.pairs(*policies.read([first, str(tmp_path / "b.json")]))
    assert [tuple(text.text for text in pair.completions) for pair in found] == [("1", "x"), ("3", "y")]
    assert [pair.number for pair in found] == [0, 1] and found[0].names == ("a", "b") and alone == 3


def test_names_are_the_shortest_that_tell_policies_apart(tmp_path):
    paths = [
        write(tmp_path / place, completions("x"))
        for place in ("one/ppo/samples.jsonl", "two/ppo/samples.jsonl", "two/other.jsonl")
    ]
    paths[0] = str(tmp_path / "one" / "ppo")
    assert [policy.name for policy in policies.read(paths)] == ["one/ppo", "two/ppo", "two/other"]
    assert [policy.name for policy in policies.read(paths[1:])] == ["ppo", "other"]
    with pytest.raises(InputError, match="given twice"):
        policies.read([paths[1], paths[1]])


@pytest.mark.parametrize(
    "rows, said",
    [
        ([{"completion": "x"}], "no field 'prompt' or 'instruction'"),
        ([{"prompt": "p", "completion": 3}], "field 'completion' is a number"),
        ([{"prompt": "p", "completion": "x", "finished": 1}], "'finished' is a number"),
        ([{"prompt": "other", "completion": "x"}], "no prompt in common"),
        ([], "the file is empty"),
    ],
)
def test_a_file_that_cannot_be_compared_is_one_sentence(tmp_path, capsys, rows, said):
    good, bad = write(tmp_path / "a.jsonl", completions("x")), write(tmp_path / "b.jsonl", rows)
    assert command.main([good, bad]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and "b.jsonl" in error


# --- judges ---


def python(tmp_path, body):
    script = tmp_path / "judge.py"
    script.write_text(
        f"import json, os, sys\nfor number, line in enumerate(sys.stdin):\n    row = json.loads(line)\n{body}\n"
    )
    return f"command:'{sys.executable}' '{script}'"


LONGER = """
    lengths = len(row["first"]), len(row["second"])
    print(json.dumps("first" if lengths[0] > lengths[1] else "second"), flush=True)"""


def test_a_command_judges_every_pair_in_both_orders(tmp_path, three, capsys):
    out = tmp_path / "found.json"
    assert command.main([*three, "--judge", python(tmp_path, LONGER), "--out", str(out)]) == 0
    found = files.read_json(out)
    assert found["judgments"] == 2 * 3 * 12
    assert [(row["first"], row["second"], row["win_rate"]["value"]) for row in found["contests"]] == [
        ("long", "middle", 1),
        ("long", "short", 1),
        ("middle", "short", 1),
    ]
    (position,) = found["positions"].values()
    assert position["first"]["value"] == 0.5 and position["favours"] is None and position["agreement"]["value"] == 1
    said = capsys.readouterr().out
    assert "long has no finite rating: it has won every comparison" in said and "no sign that the position" in said


def test_a_judge_who_always_says_first_is_told_and_nobody_wins(tmp_path, three, capsys):
    out = tmp_path / "found.json"
    arguments = [*three, "--against", "short", "--limit", "9", "--out", str(out)]
    assert command.main([*arguments, "--judge", python(tmp_path, "    print(1.0, flush=True)")]) == 0
    found = files.read_json(out)
    assert [row["win_rate"]["value"] for row in found["contests"]] == [0.5, 0.5] and found["judgments"] == 2 * 2 * 9
    assert "favours the completion shown first" in capsys.readouterr().out


def test_a_judge_that_dies_half_way_leaves_what_it_said_and_the_same_command_goes_on(tmp_path, three, capsys):
    out, log = tmp_path / "found.json", tmp_path / "asked"
    dies = f"    open({str(log)!r}, 'a').write('x')\n    if number == 7 and not os.path.exists({str(log) + 'on'!r}): sys.exit(3)"
    arguments = [*three[:2], "--judge", python(tmp_path, dies + LONGER), "--out", str(out)]
    assert command.main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "ended with status 3 after 7 answers to 24 rows" in error and not out.exists()
    assert len((tmp_path / "found.json.answers").read_text().splitlines()) == 7
    (tmp_path / "askedon").touch()
    log.unlink()
    assert command.main(arguments) == 0 and len(log.read_text()) == 24 - 7
    assert files.read_json(out)["contests"][0]["win_rate"]["value"] == 1


def test_nonsense_is_one_sentence(tmp_path, three, capsys):
    judge = python(tmp_path, '    print(json.dumps("the left one"), flush=True)')
    assert command.main([*three[:2], "--judge", judge, "--out", str(tmp_path / "o.json")]) == 2
    assert 'is \'the left one\'; it must be "first", "second" or "tie"' in capsys.readouterr().err


def test_equal_texts_are_a_tie_and_nobody_is_asked(tmp_path):
    both = [write(tmp_path / f"{name}.jsonl", completions("same", name)) for name in "ab"]
    pairs, _ = policies.pairs(*policies.read(both))
    asked = []

    def ask(rows):
        asked.extend(rows)
        yield from ("second" for _ in rows)

    found = judges.ask(pairs, outside.Scorer("it", ask), None, both=False)
    assert asked == [{"prompt": "p1", "first": "b", "second": "a"}]
    assert [(row.first, row.score, row.ordered) for row in found] == [("a", 0.5, False), ("b", 0.0, True)]


@pytest.mark.parametrize("answer", ["third", None, 1.5, -0.1, True, {"winner": None}, {}, [1]])
def test_answers_that_say_nothing_are_refused(answer):
    with pytest.raises(InputError):
        judges.verdict(answer)


def test_answers_in_words_and_numbers():
    answers = ["first", "Second", "tie", 0.25, {"winner": "first"}, {"score": 0}]
    assert [judges.verdict(answer) for answer in answers] == [1, 0, 0.5, 0.25, 1, 0]


# --- a run of the embedded world ---


@pytest.fixture(scope="module")
def world_run(tmp_path_factory):
    """A work directory whose stages have answered the test prompts: sft with the demonstrations' start, ppo with nonsense."""
    path = tmp_path_factory.mktemp("runs") / "toy"
    config = toy_config()
    with run_lib.start(config, str(path)) as run:
        prompts = run.corpus.prompts("test", "ppo")
        random_ = random.Random(0)
        for stage in ("sft", "ppo"):
            rows = []
            for index, record in enumerate(prompts):
                text = " ".join(random_.sample(record.prompt.split(), 4)) + " ."
                gold = run.corpus.gold(record, text, True)
                rows.append(
                    {"index": index, "prompt": record.prompt, "completion": text, "finished": True, "tokens": [1]}
                )
                rows[-1]["gold"] = gold._asdict()
            (path / stage).mkdir()
            files.write_json_lines(path / stage / "samples.jsonl", rows)
            finished.mark(path / stage, {"seconds": 1.0})
    return path


def test_gold_judges_as_the_evaluation_of_a_run_does(world_run, tmp_path):
    out = tmp_path / "found.json"
    assert command.main([str(world_run), "--out", str(out), "--figure", str(tmp_path / "f.png")]) == 0
    (row,) = files.read_json(out)["contests"]
    totals = [
        [line["gold"]["total"] for line in files.read_json_lines(world_run / stage / "samples.jsonl")]
        for stage in ("ppo", "sft")
    ]
    wins = [1.0 if one > other else 0.0 if one < other else 0.5 for one, other in zip(*totals)]
    assert (row["first"], row["second"]) == ("ppo", "sft") and row["win_rate"]["value"] == pytest.approx(np.mean(wins))
    assert files.read_json(out)["positions"] == {} and (tmp_path / "f.png").read_bytes()[:4] == b"\x89PNG"


def test_gold_cannot_judge_prompts_of_another_world(world_run, tmp_path, capsys):
    other = [write(tmp_path / f"{name}.jsonl", completions("x")) for name in "ab"]
    assert command.main([*other, "--judge", f"gold:{world_run}"]) == 2
    assert "1 of 1 prompts are none of the world" in capsys.readouterr().err
    assert command.main(other) == 2
    assert "needs a run, whose world it knows" in capsys.readouterr().err


def test_a_released_reward_model_judges_files_of_completions(tmp_path, capsys):
    tokenizer = Tokenizer.train([], 258)
    config = tiny.llama(max_length=40, vocab_size=tokenizer.vocab_size)
    params = tiny.params_of(config, 0, "scalar")
    (tmp_path / "reward").mkdir()
    hf.save(tmp_path / "reward", config, params, head="scalar")
    tokenizer.save_to(tmp_path / "reward")
    texts = {"mine": [" yes", " no way", " so"], "theirs": [" no", " of course", " it is"]}
    for name, completions in texts.items():
        rows = [{"prompt": f"what {n}?", "completion": text} for n, text in enumerate(completions)]
        rows.insert(1, {"prompt": "too long " * 9, "completion": f" {name}"})
        write(tmp_path / f"{name}.jsonl", rows)

    def score(prompt, completion):
        ids = tokenizer.encode_prompts([prompt])[0] + tokenizer.encode(completion, continues=True) + [tokenizer.eos_id]
        return float(ppo.sequence_scores(config, params, np.array([ids]), np.ones((1, len(ids)), bool))[0])

    wins = [
        score(f"what {n}?", mine) > score(f"what {n}?", theirs) for n, (mine, theirs) in enumerate(zip(*texts.values()))
    ]
    files_of = [str(tmp_path / f"{name}.jsonl") for name in texts]
    out = tmp_path / "found.json"
    assert command.main([*files_of, f"--judge=reward:{tmp_path}/reward", f"--out={out}"]) == 0
    assert files.read_json(out)["contests"][0]["win_rate"]["value"] == pytest.approx(np.mean(wins))
    assert "1 prompt is too long for reward:" in capsys.readouterr().out
    for name in texts:
        write(tmp_path / f"{name}.jsonl", [{"prompt": "too long " * 9, "completion": f" {name}"}])
    assert command.main([*files_of, f"--judge=reward:{tmp_path}/reward", f"--out={out}"]) == 2
    assert "can read none of the prompts" in capsys.readouterr().err


def test_a_reward_model_reads_the_tokens_of_its_own_run_and_texts_of_others(world_run, tmp_path, monkeypatch):
    asked = []

    class Longest:
        def __init__(self, run, stage):
            asked.append(stage)

        def read(self, prompts):
            return np.arange(1, len(prompts))  # the first is too long

        def __call__(self, prompts, texts, ended, sampled):
            asked.append(sampled)
            return np.array([float(len(text)) for text in texts])

    monkeypatch.setattr(scorer_lib, "Scorer", Longest)
    monkeypatch.setattr(
        sources, "last_of", lambda path, gives: sources.Trained(path, {"reward": "reward_model"}[gives])
    )
    rows = files.read_json_lines(world_run / "sft" / "samples.jsonl")
    longer = [{"prompt": row["prompt"], "completion": row["completion"] + " and more"} for row in rows]
    out = tmp_path / "found.json"
    arguments = [write(tmp_path / "mine.jsonl", longer), str(world_run / "sft"), "--out", str(out)]
    assert command.main([*arguments, f"--judge=reward:{world_run}"]) == 0
    assert files.read_json(out)["contests"][0]["win_rate"]["value"] == 1
    assert files.read_json(out)["contests"][0]["prompts"] == len(rows) - 1
    assert asked == ["reward_model", None, [(1,)] * (len(rows) - 1)]
    with pytest.raises(InputError, match="is no finished reward model"):
        judges.reward(str(world_run / "sft"))
    with pytest.raises(
        InputError, match="neither a finished reward stage, nor a work directory, nor a Hugging Face folder"
    ):
        judges.reward(str(tmp_path))


# --- blind pairs ---


def test_blind_pairs_come_back_as_what_was_judged(tmp_path, three, capsys):
    pairs_file, out = tmp_path / "pairs.jsonl", tmp_path / "found.json"
    assert command.main([*three, "--export", str(pairs_file), "--seed", "3"]) == 0
    assert "36 pairs to judge" in capsys.readouterr().out
    text = pairs_file.read_text()
    assert not any(name in text for name in ("long", "middle", "short"))
    rows = [json.loads(line) for line in text.splitlines()]
    key = {line["id"]: line for line in files.read_json_lines(tmp_path / "pairs.key.jsonl")}
    firsts = [(key[row["id"]]["first"], key[row["id"]]["second"]) for row in rows]
    assert all(firsts.count(order) == 6 for order in firsts) and len(set(firsts)) == 6  # balanced, and mixed:
    assert firsts != sorted(firsts) and [row["id"] for row in rows] != sorted(key)
    for row in rows:
        row["winner"] = "first" if len(row["first"]) > len(row["second"]) else "second"
    rows[0]["winner"] = None
    write(pairs_file, [{"id": row["id"], "winner": row["winner"], "judge": "me"} for row in rows])
    assert command.main(["--import", str(pairs_file), "--out", str(out)]) == 0
    assert "1 pairs have no verdict" in capsys.readouterr().err
    won = {(row["first"], row["second"]): row["win_rate"]["value"] for row in files.read_json(out)["contests"]}
    sizes = {"long": 12, "middle": 6, "short": 1}
    assert len(won) == 3 and all(rate == (sizes[one] > sizes[other]) for (one, other), rate in won.items())


def test_blind_pairs_are_the_same_for_the_same_seed_and_never_overwritten(tmp_path, three, capsys):
    for name in ("one", "two"):
        assert command.main([*three, "--export", str(tmp_path / name), "--orders=both"]) == 0
    assert (tmp_path / "one").read_text() == (tmp_path / "two").read_text()
    assert len((tmp_path / "one").read_text().splitlines()) == 72
    before = (tmp_path / "one").read_bytes(), (tmp_path / "one.key.jsonl").read_bytes()
    assert command.main([*three, "--export", str(tmp_path / "one"), "--seed=9"]) == 2
    assert "somebody may have judged" in capsys.readouterr().err
    assert before == ((tmp_path / "one").read_bytes(), (tmp_path / "one.key.jsonl").read_bytes())


@pytest.mark.parametrize(
    "row, said",
    [
        ({"id": "nobody", "winner": "first"}, "is not in"),
        ({"id": None, "winner": "left"}, "the winner is 'left'"),
        ({"id": None, "winner": None}, "no pair has a winner yet"),
    ],
)
def test_judgments_that_fit_no_pair_are_one_sentence(tmp_path, three, capsys, row, said):
    pairs_file = tmp_path / "pairs.jsonl"
    command.main([*three[:2], "--export", str(pairs_file)])
    known = json.loads(pairs_file.read_text().splitlines()[0])["id"]
    write(pairs_file, [row | {"id": row["id"] or known}])
    capsys.readouterr()
    assert command.main(["--import", str(pairs_file)]) == 2
    error = capsys.readouterr().err
    assert said in error and "pairs.jsonl" in error
    assert command.main(["--import", str(tmp_path / "long.jsonl")]) == 2
    assert "name the key" in capsys.readouterr().err


# --- what others publish ---


def read_published(tmp_path, rows):
    (tmp_path / "given.json").write_text(json.dumps(rows))
    return published.read(str(tmp_path / "given.json"))


def test_alpaca_evals_annotations(tmp_path):
    """The fields of annotations.json at tatsu-lab/alpaca_eval cd543a1; its win rate counts 0 and 1.5 as half wins."""
    row = {
        "output_1": "of the baseline",
        "generator_1": "gpt4",
        "output_2": "ours",
        "generator_2": "m",
        "annotator": "a",
    }
    rows = [
        row | {"instruction": f"i{n}", "preference": value} for n, value in enumerate([1.0, 2.0, 1.5, 0, 1.25, None])
    ]
    found, without = read_published(tmp_path, rows)
    assert [judgment.score for judgment in found] == [0, 1, 0.5, 0.5, 0.25] and without == 1
    assert {(row.first, row.second, row.lengths, row.ordered) for row in found} == {("m", "gpt4", (4, 15), False)}
    with pytest.raises(InputError, match="given.json.*'preference' is '3'"):
        read_published(tmp_path, [rows[0] | {"preference": 3}])


def test_chatbot_arenas_battles_in_three_forms(tmp_path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "abc"}]
    newer = [{"role": turn["role"], "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    names = {"model_a": "x", "model_b": "y"}
    old = [
        names | {"winner": who, "conversation_a": turns, "conversation_b": turns}
        for who in ("model_b", "tie (bothbad)")
    ]
    new = [names | {"winner": who, "conversation_a": newer, "conversation_b": newer} for who in ("model_a", "both_bad")]
    for rows, scores in ((old, [0, 0.5]), (new, [1, 0.5])):
        found, without = read_published(tmp_path, rows)
        assert [(row.prompt, row.first, row.score, row.lengths) for row in found] == [
            ("q", "x", s, (3, 3)) for s in scores
        ]
        assert without == 0 and len({row.pair for row in found}) == 2  # two votes are two battles
    columns = [names | {"id": 7, "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}]
    assert read_published(tmp_path, columns)[0][0].score == 0
    with pytest.raises(InputError, match="'winner' is 'left'"):
        read_published(tmp_path, [old[0] | {"winner": "left"}])


def test_mt_benchs_pairs_were_shown_in_both_orders(tmp_path):
    """The fields of gpt-4_pair.jsonl at lm-sys/FastChat 0e6d3e4: g2 has model_2 first, and names models, not places."""
    row = {"question_id": 81, "model_1": "x", "model_2": "y", "judge": ["gpt-4", "pair-v2"], "turn": 1}
    rows = [
        row | {"g1_winner": "model_1", "g2_winner": "model_1"},
        row | {"g1_winner": "error", "g2_winner": "tie", "turn": 2},
    ]
    found, without = read_published(tmp_path, rows)
    assert [(row.first, row.second, row.score) for row in found] == [("x", "y", 1), ("y", "x", 0), ("y", "x", 0.5)]
    assert rates.positions(found[:2])["gpt-4/pair-v2"].first.value == 0.5 and without == 0


def test_a_file_that_changes_its_form_is_one_sentence(tmp_path):
    good = {"model_a": "x", "model_b": "y", "winner": "tie"}
    with pytest.raises(InputError, match="given.json.*lacks a field"):
        read_published(tmp_path, [good, {"model_a": "x"}])
    assert read_published(tmp_path, [{"id": "x", "winner": "first"}]) is None


# --- the command ---


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "give either policies"),
        (["a", "--import=b"], "give either policies"),
        (["a", "--figure=f.pdf"], "must end in .png"),
        (["a", "--out=nowhere/found.json"], "must be a file in a folder that is there"),
        (["LONG", "SHORT", "--judge=me"], "is none of gold"),
        (["LONG", "SHORT", "--judge=my:judge"], "needs --out"),
        (["LONG", "SHORT", "--against=other"], "is none of the policies, which are long, short"),
        (["LONG"], "is one policy"),
        (["TEMP", "SHORT"], "has no samples.jsonl"),
    ],
)
def test_flags_that_do_not_go_together_are_one_sentence(tmp_path, three, capsys, monkeypatch, arguments, said):
    if "--judge=my:judge" in arguments:
        monkeypatch.setattr(outside, "function", lambda name: outside.Scorer(name, iter))
    places = {"LONG": three[0], "SHORT": three[2], "TEMP": str(tmp_path)}
    assert command.main([places.get(word, word) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_the_figure_of_many_and_of_policies_without_ratings(tmp_path):
    random_ = np.random.default_rng(0)
    said = [
        judgment(n, one, other, float(random_.random() < 0.6))
        for n in range(30)
        for one, other in (("a", "b"), ("b", "c"), ("a", "c"))
    ] + [judgment(n, "top", "a", 1.0) for n in range(30)]
    found = compare.summarize(said, ["a", "b", "c", "top"])
    of_comparison.draw(found, tmp_path / "many.png")
    of_comparison.draw(compare.summarize(said[-30:], ["top", "a"]), tmp_path / "two.png")
    assert all(pathlib.Path(tmp_path, f"{name}.png").stat().st_size > 5000 for name in ("many", "two"))
