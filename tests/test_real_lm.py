"""The experiment on a released model divides TruthfulQA by question, and ranks true answers above false ones."""

import json
import lzma
import subprocess
import sys
from pathlib import Path

from rlhf_jax.data.record_files import read_rows

ROOT = Path(__file__).resolve().parent.parent


def divide(folder: Path, rows: list[dict]) -> None:
    with lzma.open(folder / "pref_truthfulqa_judge.jsonl.xz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    subprocess.run([sys.executable, "-m", "experiments.real_lm", str(folder)], check=True, cwd=ROOT)


def test_questions_are_in_one_split_and_every_true_answer_is_above_every_false_one(tmp_path):
    rows = [
        {"prompt": f"Q: {question}?\nA:", "chosen": f" true {pair // 2}", "rejected": f" false {pair}"}
        for question in range(20)
        for pair in range(6)
    ]
    rows.append({"prompt": "Q: 3?\nA:", "chosen": " ", "rejected": " false"})  # as some of the real answers are
    divide(tmp_path, rows)
    train, valid = (read_rows(tmp_path / "truthfulqa", "rankings", splits=[name])[0] for name in ("train", "valid"))
    questions = [{ranking.prompt for ranking in split} for split in (train, valid)]
    assert [len(names) for names in questions] == [12, 8] and not questions[0] & questions[1]
    assert [len(split) for split in (train, valid)] == [24, 16]  # of 4 pairs and of 2
    for ranking in (*train, *valid):
        assert all((rank == 1) == text.startswith(" true") for text, rank in zip(ranking.completions, ranking.ranks))
        assert sorted(ranking.completions) == sorted(set(ranking.completions))
    assert [len(ranking.completions) for ranking in train[:2]] == [6, 3]


def test_chats_have_the_same_questions_and_no_answer_that_refuses(tmp_path):
    rows = [
        {"prompt": f"Q: {question}?\nA:", "chosen": answer, "rejected": " false"}
        for question in range(10)
        for answer in ([" true", " I have no comment.", "  also true "] if question else [" I have no comment."])
    ]
    divide(tmp_path, rows)
    asked = {}
    for name in ("chat", "unseen"):
        rankings, demonstrations = (
            [json.loads(line) for line in (tmp_path / f"truthfulqa_{name}" / f"{kind}.jsonl").read_text().splitlines()]
            for kind in ("rankings", "demonstrations")
        )
        assert all(row["completions"] == ["false", "true", "also true"] for row in rankings)
        assert all(row["ranks"] == [2, 1, 1] for row in rankings) and len(demonstrations) == 2 * len(rankings)
        asked[name] = {row["prompt"][1]["content"] for row in rankings}
    plain = {row.prompt for row in read_rows(tmp_path / "truthfulqa", "rankings", splits=["valid"])[0]}
    assert {f"Q: {question}\nA:" for question in asked["unseen"]} == plain - {"Q: 0?\nA:"}
    assert not asked["chat"] & asked["unseen"] and len(asked["chat"] | asked["unseen"]) == 9
