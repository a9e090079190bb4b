"""What must not be divided is in one split, what must not be trained on is in none of training."""

import collections
import hashlib
import json
import random

import pytest

from rlhf_jax.config import data_config
from rlhf_jax.data import splits
from rlhf_jax.data.corpus import FileCorpus
from rlhf_jax.data.template import Template
from rlhf_jax.runtime.errors import InputError

SPLITS = ("train", "valid", "test")


def corpus(folder, kinds, **files):
    """A corpus of {kind: rows}."""
    config = data_config().files
    config.update(dir=str(folder), **{"valid_share": 0.3, "test_share": 0.2} | files)
    for kind, rows in kinds.items():
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config[kind] = f"{kind}.jsonl"
    return FileCorpus(config, Template(), "error")


def demonstration(prompt, number=0, **fields):
    return {"prompt": prompt, "completion": f" done {number}", **fields}


def ranking(prompt, labeler, number=0, **fields):
    return {
        "prompt": prompt,
        "completions": [f" a{number}", f" b{number}"],
        "ranks": [1, 2],
        "labeler": labeler,
        **fields,
    }


def split_of(found, kind="demonstrations"):
    return {row.prompt: name for name, rows in found.splits(kind).items() for row in rows}


@pytest.fixture
def planted():
    """40 passages, each with four questions at its end: near duplicates that a hash of the prompt divides."""
    rng = random.Random(0)
    passages = ["".join(rng.choices("abcdefgh ", k=200)) for _ in range(40)]
    return [[f"{passage} question {n}" for n in range(4)] for passage in passages]


def divided(found, planted, kind="demonstrations"):
    where = split_of(found, kind)
    return sum(len({where[prompt] for prompt in cluster if prompt in where}) > 1 for cluster in planted)


def test_near_duplicates_stay_together_and_would_be_divided_without_the_rule(tmp_path, planted):
    rows = [demonstration(prompt) for cluster in planted for prompt in cluster]
    assert divided(corpus(tmp_path, {"demonstrations": rows}, near_duplicates="ignore"), planted) > 20
    found = corpus(tmp_path, {"demonstrations": rows})
    assert divided(found, planted) == 0
    assert [len(found.demonstrations(name)) for name in SPLITS] == pytest.approx([80, 48, 32], abs=28)
    facts = found.split_reports["demonstrations"]["near_duplicates"]
    assert facts == {"prompts": 160, "clusters": 40, "in_clusters": 160, "largest": 4}


def test_near_duplicates_stay_together_across_kinds_and_in_any_order(tmp_path, planted):
    demonstrations = [demonstration(cluster[0]) for cluster in planted]
    rankings = [ranking(cluster[1], "ann") for cluster in planted]
    found = corpus(tmp_path, {"demonstrations": demonstrations, "rankings": rankings})
    first, second = split_of(found), split_of(found, "rankings")
    assert [first[cluster[0]] for cluster in planted] == [second[cluster[1]] for cluster in planted]
    again = corpus(tmp_path, {"demonstrations": demonstrations[::-1], "rankings": rankings[::-1]})
    assert split_of(again) == first


def test_groups_that_share_a_near_duplicate_hang_together(tmp_path):
    long = "Here is the whole text of the letter that has to be answered today: " + "x" * 100
    rows = [demonstration(f"{letter} {n}", group=letter) for letter in "abcdefghij" for n in range(3)] + [
        demonstration(f"{long} {n}", group=letter) for n, letter in enumerate("aehj")
    ]
    where = collections.defaultdict(set)
    for name, own in corpus(tmp_path, {"demonstrations": rows}, valid_share=0.4).splits("demonstrations").items():
        for row in own:
            where["linked" if row.row["group"] in "aehj" else row.row["group"]].add(name)
    assert all(len(names) == 1 for names in where.values()) and len(set().union(*where.values())) > 1


def test_a_group_of_zero_is_a_group(tmp_path):
    found = corpus(tmp_path, {"demonstrations": [demonstration(f"p{n}", group=n // 50) for n in range(100)]})
    assert sorted(len(rows) for rows in found.splits("demonstrations").values() if rows) in ([50, 50], [100])


def test_dropping_keeps_all_rows_of_one_prompt_of_a_cluster(tmp_path, planted):
    rows = [demonstration(prompt, n) for cluster in planted for prompt in cluster for n in (0, 1)]
    rows += rows[:5]
    found = corpus(tmp_path, {"demonstrations": rows}, near_duplicates="drop")
    kept = [row for name in SPLITS for row in found.demonstrations(name)]
    assert sorted((row.prompt, row.completion) for row in kept) == sorted(
        (min(cluster), f" done {n}") for cluster in planted for n in (0, 1)
    )
    assert found.split_reports["demonstrations"]["left_out"] == {
        "they repeat another row": 5,
        "a near duplicate of their prompt stays": 240,
    }
    assert divided(found, planted) == 0


def test_held_out_labelers_are_never_in_training_and_their_prompts_neither(tmp_path):
    rows = [ranking(f"p{n}", who) for n in range(200) for who in ("ann", "bob", "cyd")]
    found = corpus(tmp_path, {"rankings": rows}, held_out_labelers="cyd")
    by_split = {name: found.rankings(name) for name in (*SPLITS, "heldout")}
    assert {name: {row.labeler for row in own} for name, own in by_split.items()} == {
        **dict.fromkeys(SPLITS, {"ann", "bob"}),
        "heldout": {"cyd"},
    }
    prompts = {name: {row.prompt for row in own} for name, own in by_split.items()}
    assert prompts["heldout"] == prompts["valid"] | prompts["test"] and not prompts["heldout"] & prompts["train"]
    left_out = found.split_reports["rankings"]["left_out"]["a held-out labeler judged a training prompt"]
    assert left_out == len(prompts["train"]) and left_out + sum(map(len, by_split.values())) == 600


def test_a_share_of_the_labelers_is_held_out_whatever_the_order(tmp_path):
    rows = [ranking(f"p{n}", f"l{n % 10}") for n in range(300)]
    out = []
    for own in (rows, rows[::-1]):
        found = corpus(tmp_path, {"rankings": own}, held_out_labelers="20%")
        out.append({row.labeler for row in found.rankings("heldout")})
        assert not out[-1] & {row.labeler for name in SPLITS for row in found.rankings(name)}
    assert out[0] == out[1] and len(out[0]) == 2
    assert corpus(tmp_path, {"rankings": rows}).rankings("heldout") == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"held_out_labelers": "zoe"}, "'zoe' selects none; they are ann, bob"),
        ({"held_out_labelers": "some%"}, "held_out_labelers='some%' must be names separated by commas, or a share"),
        ({"near_duplicates": "delete"}, "near_duplicates='delete' must be 'together', 'drop' or 'ignore'"),
        ({"common_prefix": 0}, "common_prefix=0 must be a whole number from 1"),
        ({"per_user": 3}, "per_user=3, but no row has the field 'user'"),
    ],
)
def test_what_does_not_fit_the_rows_is_named(tmp_path, files, message):
    rows = [ranking(f"p{n}", who) for n in range(20) for who in ("ann", "bob")]
    with pytest.raises(InputError, match=message):
        corpus(tmp_path, {"rankings": rows}, **files).rankings("train")


def test_a_user_has_at_most_so_many_prompts(tmp_path):
    rows = [demonstration(f"p{n}", k, user="big" if n % 4 else f"u{n}") for n in range(100) for k in (0, 1)]
    found = corpus(tmp_path, {"demonstrations": rows}, per_user=10)
    kept = [row for name in SPLITS for row in found.demonstrations(name)]
    users = collections.Counter(row.row["user"] for row in kept)
    assert users.pop("big") == 20 and set(users.values()) == {2} and len(users) == 25
    assert found.split_reports["demonstrations"]["left_out"] == {"their user has more than 10 prompts": 130}
    again = corpus(tmp_path, {"demonstrations": rows[::-1]}, per_user=10)
    assert split_of(again) == split_of(found)


def test_documents_have_no_labelers_and_no_users(tmp_path):
    kinds = {
        "documents": [{"text": f"text {n}"} for n in range(50)],
        "rankings": [ranking(f"p{n}", who, user="u") for n in range(50) for who in ("ann", "bob")],
        "prompts": [{"prompt": f"p{n}"} for n in range(50)],  # of no user: all stay
    }
    found = corpus(tmp_path, kinds, held_out_labelers="bob", per_user=20)
    assert sum(len(found.documents(name)) for name in SPLITS) == 50
    assert sum(len(found.prompts(name, "ppo")) for name in SPLITS) == 50
    assert len({row.prompt for name in SPLITS for row in found.rankings(name)}) == 20


def test_splitting_by_user_is_a_group_field(tmp_path):
    rows = [demonstration(f"p{n}", user=f"u{n % 7}") for n in range(140)]
    where = collections.defaultdict(set)
    for name, own in corpus(tmp_path, {"demonstrations": rows}, group_field="user").splits("demonstrations").items():
        for row in own:
            where[row.row["user"]].add(name)
    assert all(len(names) == 1 for names in where.values())


def test_places_are_uniform_and_fixed():
    places = [splits.place(f"prompt {n}") for n in range(4000)]
    assert sum(p < 0.1 for p in places) == pytest.approx(400, abs=60)
    assert places[0] == 0.6193859191188053  # rows would change their split with it


# --------------------------------------------------------------------- whole groups, such as tasks


@pytest.fixture
def tasks():
    """20 tasks of 10 demonstrations each, and 10 demonstrations that have no task."""
    rows = [
        demonstration(f"Q{task:02}{n} {n * 7919} of {task}?", n, task=f"t{task}")
        for task in range(20)
        for n in range(10)
    ]
    return rows + [demonstration(f"Alone {n * 104729}?", n) for n in range(10)]


def of_tasks(folder, rows, **files):
    """Returns {split: {task: prompts}} of demonstrations that are grouped by their tasks."""
    found, prompts = corpus(folder, {"demonstrations": rows}, group_field="task", **files), {}
    for name in SPLITS:
        prompts[name] = collections.defaultdict(set)
        for row in found.splits("demonstrations")[name]:
            prompts[name][row.row.get("task")].add(row.prompt)
    return prompts


def test_unseen_tasks_are_whole_tasks_and_another_seed_has_others(tmp_path, tasks):
    unseen = []
    for seed in range(4):
        found = of_tasks(tmp_path, tasks, split_seed=seed)
        by_split = {name: set(found[name]) - {None} for name in SPLITS}
        assert sum(map(len, by_split.values())) == 20 and all(by_split.values())  # no task is in two splits
        assert all(len(found[name][task]) == 10 for name in SPLITS for task in by_split[name])
        unseen.append(frozenset(by_split["test"]))
    assert len(set(unseen)) == 4
    assert of_tasks(tmp_path, tasks, split_seed=3) == found  # and the same seed has the same


def test_seed_0_places_rows_as_without_a_seed():
    digest = hashlib.blake2b(b"a question?", digest_size=8).digest()
    assert splits.place("a question?") == splits.place("a question?", 0) == int.from_bytes(digest, "little") / 2**64


@pytest.mark.parametrize("seed", [0, 5])
def test_fewer_training_tasks_are_among_more_and_the_unseen_ones_stay(tmp_path, tasks, seed):
    whole = of_tasks(tmp_path, tasks, split_seed=seed)
    before = {None}
    for count in (1, 2, 3, 6):
        found = of_tasks(tmp_path, tasks, split_seed=seed, training_groups=count)
        assert found["test"] == whole["test"] and found["valid"] == whole["valid"]
        assert len(found["train"]) == count + 1 and before < set(found["train"])  # rows without a task stay
        assert all(prompts == whole["train"][task] for task, prompts in found["train"].items())
        before = set(found["train"])
    assert before - set(of_tasks(tmp_path, tasks, split_seed=seed + 1, training_groups=6)["train"])


def test_the_rows_of_a_training_task_are_limited_and_fewer_are_among_more(tmp_path, tasks):
    whole = of_tasks(tmp_path, tasks)
    more = of_tasks(tmp_path, tasks, training_group_rows=6)
    fewer = of_tasks(tmp_path, tasks, training_group_rows=2)
    for name in ("valid", "test"):
        assert fewer[name] == more[name] == whole[name]
    for task in set(whole["train"]) - {None}:
        assert len(fewer["train"][task]) == 2 and len(more["train"][task]) == 6
        assert fewer["train"][task] < more["train"][task] < whole["train"][task]
    assert fewer["train"][None] == whole["train"][None]


def test_what_is_left_out_for_the_sake_of_few_tasks_is_counted(tmp_path, tasks):
    found = corpus(
        tmp_path, {"demonstrations": tasks[:200]}, group_field="task", training_groups=3, training_group_rows=4
    )
    assert len(found.demonstrations("train")) == 12
    left_out = found.split_reports["demonstrations"]["left_out"]
    in_train = 200 - sum(len(found.demonstrations(name)) for name in ("valid", "test"))
    assert left_out == {
        "their group is not among the 3 training groups": in_train - 30,
        "their group has more than 4 rows in train": 18,
    }


def test_documents_have_no_tasks_and_stay(tmp_path, tasks):
    documents = [{"text": f"{n} words"} for n in range(40)]
    kinds = {"documents": documents, "demonstrations": tasks}
    found = corpus(tmp_path, kinds, group_field="task", training_groups=2)
    whole = corpus(tmp_path, kinds, group_field="task")
    assert found.documents("train") == whole.documents("train")
    assert {row.row.get("task") for row in found.demonstrations("train")} - {None} < {
        row.row.get("task") for row in whole.demonstrations("train")
    }


def test_more_training_tasks_than_there_are_is_a_sentence(tmp_path, tasks):
    with pytest.raises(
        InputError, match=r"^data.files.training_groups=21 must be at most \d+, the groups of the split train"
    ):
        of_tasks(tmp_path, tasks, training_groups=21)
    with pytest.raises(InputError, match=r"must be at most 0, .* by the field 'tsk' \(data.files.group_field\)$"):
        corpus(tmp_path, {"demonstrations": tasks}, group_field="tsk", training_groups=2).splits("demonstrations")
