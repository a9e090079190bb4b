"""The experiment on a released model divides TruthfulQA by question, and ranks true answers above false ones."""

import json
import lzma
import subprocess
import sys
from pathlib import Path

from rlhf_jax.data.record_files import read_rows

EXPERIMENT = Path(__file__).resolve().parent.parent / "experiments" / "real_lm.py"


def test_questions_are_in_one_split_and_every_true_answer_is_above_every_false_one(tmp_path):
    rows = [
        {"prompt": f"Q: {question}?\nA:", "chosen": f" true {pair // 2}", "rejected": f" false {pair}"}
        for question in range(20)
        for pair in range(6)
    ]
    rows.append({"prompt": "Q: 3?\nA:", "chosen": " ", "rejected": " false"})  # as some of the real answers are
    with lzma.open(tmp_path / "pref_truthfulqa_judge.jsonl.xz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    subprocess.run([sys.executable, str(EXPERIMENT), str(tmp_path)], check=True)
    train, valid = (read_rows(tmp_path / "truthfulqa", "rankings", splits=[name])[0] for name in ("train", "valid"))
    questions = [{ranking.prompt for ranking in split} for split in (train, valid)]
    assert [len(names) for names in questions] == [12, 8] and not questions[0] & questions[1]
    assert [len(split) for split in (train, valid)] == [24, 16]  # of 4 pairs and of 2
    for ranking in (*train, *valid):
        assert all((rank == 1) == text.startswith(" true") for text, rank in zip(ranking.completions, ranking.ranks))
        assert sorted(ranking.completions) == sorted(set(ranking.completions))
    assert [len(ranking.completions) for ranking in train[:2]] == [6, 3]
