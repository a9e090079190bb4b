"""lm-eval over several hosts: two real processes with four devices each give the results of one process."""

import json
import sys

import pytest
from test_hosts import Job, environment, free_address  # noqa: F401  (a fixture)

pytest.importorskip("lm_eval", reason="lm-eval is not installed: EXTRAS=test")


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(shared_data, environment, tmp_path):  # noqa: F811
    (tmp_path / "rows.jsonl").write_text(
        "".join(
            json.dumps({"question": f"Once upon a time there was a {who}. The {who} was"}) + "\n" for who in "abcdefg"
        )
    )
    shared = f"dataset_path: json\ndataset_kwargs:\n  data_files: {tmp_path}/rows.jsonl\ntest_split: train\n"
    shared += 'doc_to_text: "{{question}}"\nmetric_list:\n'
    (tmp_path / "mc.yaml").write_text(
        f"task: toy_mc\noutput_type: multiple_choice\ndoc_to_choice: [' sad', ' happy', ' very very big']\n"
        f"doc_to_target: 1\n{shared}  - metric: acc\n"
    )
    (tmp_path / "gen.yaml").write_text(
        f"task: toy_gen\noutput_type: generate_until\ndoc_to_target: ' happy.'\n{shared}  - metric: exact_match\n"
        "generation_kwargs:\n  until: ['.']\n  max_gen_toks: 20\n"
    )
    command = [sys.executable, "-u", "-m", "rlhf_jax.evaluate", f"--model={shared_data}/stories260K"]
    command += [f"--include={tmp_path}", "--tasks=toy_mc,toy_gen"]

    def rows(folder, task):
        found = [json.loads(line) for line in (tmp_path / folder / f"lm_eval.{task}.jsonl").read_text().splitlines()]
        return [row["filtered_resps"] for row in found]

    one = Job([*command, f"--out={tmp_path}/one"], environment | {"JAX_NUM_CPU_DEVICES": "1"})
    joined = [f"--coordinator={free_address()}", "--num_processes=2"]
    two = [
        Job(
            [*command, *joined, f"--process_id={i}", f"--out={tmp_path}/two"],
            environment | {"JAX_NUM_CPU_DEVICES": "4"},
        )
        for i in range(2)
    ]
    for job in (one, *two):
        assert job.end(240) == 0, job.output
    assert "toy_mc" in two[0].output and "acc" not in two[1].output  # one of them prints
    assert rows("one", "toy_gen") == rows("two", "toy_gen")
    for expected, found in zip(rows("one", "toy_mc"), rows("two", "toy_mc"), strict=True):
        assert [total for total, _ in found] == pytest.approx([total for total, _ in expected], abs=1e-3)
