"""OpenAI's summaries of Reddit posts: every published form, and the rule for posts that are too long."""

import pyarrow
import pyarrow.parquet
import pytest
from published import corpus, made, write_lines

from rlhf_jax.data import prepare
from rlhf_jax.data.public import DATASETS
from rlhf_jax.data.public.summarize import shorter
from rlhf_jax.data.tokenizer import Tokenizer

pytest.importorskip("tensorflow_datasets", reason="the extra tfds is not installed")
pytest.importorskip("array_record")

POST = {"id": "t3_1", "subreddit": "running", "title": "Slow", "post": "I ran.\n\nIt rained.\nI slipped."}
PROMPT = "SUBREDDIT: r/running\n\nTITLE: Slow\n\nPOST: I ran.\n\nIt rained.\nI slipped.\n\nTL;DR:"
NEWS = {"id": "n1", "post": None, "title": None, "subreddit": None, "article": "A fox ran.\nIt rained.", "site": "cnn"}
EOS = "<|endoftext|>"


def write_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def shortened_as_openai_has_it(post, limit, count):
    """The rule of summarize_from_feedback/tasks.py on the field `post`, written anew: cut at the last line break, or one
    character, until the prompt fits."""

    def prompt():
        return f"SUBREDDIT: r/{post['subreddit']}\n\nTITLE: {post['title']}\n\nPOST: {text}\n\nTL;DR:"

    text = post["post"]
    while count(prompt()) > limit:
        place = text.rfind("\n")
        text = text[: place if place >= 0 else len(text) - 1]
    return prompt()


def test_a_prompt_loses_its_last_paragraphs_then_its_last_characters():
    found, texts = PROMPT, []
    while found := shorter(found):
        texts.append(found.partition("POST: ")[2].removesuffix("\n\nTL;DR:"))
    assert texts[:6] == ["I ran.\n\nIt rained.", "I ran.\n", "I ran.", "I ran", "I ra", "I r"] and texts[-1] == ""
    assert shorter("Article:\nA fox.\nIt ran.\n\nTL;DR:\n") == "Article:\nA fox.\n\nTL;DR:\n"


def test_prompts_are_cut_by_the_rule_of_the_paper(tmp_path, capsys):
    tokenizer = Tokenizer.train([PROMPT] * 4, 300)
    tokenizer.save(tmp_path / "tokenizer.json")

    def count(prompt):
        return len(tokenizer.encode_prompts([prompt])[0])

    posts = [
        POST,
        {**POST, "id": "t3_2", "post": "one line " * 40},
        {**POST, "id": "t3_3", "post": "first\n" + "second " * 30 + "\n\nthird"},
        {**POST, "id": "t3_4", "post": POST["post"] + "\n" + "end " * 9},
        {**POST, "id": "t3_5", "title": "x" * 400},
    ]
    for split in ("train", "valid", "test"):
        write_lines(tmp_path / f"source/tldr_3_filtered/{split}.jsonl", [{**row, "summary": "Ran."} for row in posts])
    limit = count(PROMPT)
    flags = [f"--source={tmp_path}/source", f"--out={tmp_path}", f"--tokenizer={tmp_path}/tokenizer.json"]
    assert prepare.main(["--dataset=summarize_tldr", *flags, f"--prompt_tokens={limit}"]) == 0
    rows = [row.prompt for row in corpus(tmp_path, demonstrations="summarize_tldr:train")._rows("demonstrations")]
    assert rows == [shortened_as_openai_has_it(post, limit, count) for post in posts[:4]]
    assert rows[0] == PROMPT and max(map(count, rows)) == limit
    report = (tmp_path / "summarize_tldr/1.0.0/preparation.json").read_text()
    assert '"shortened": 9' in report and f"the prompt is longer than {limit} tokens without its text" in report
    assert prepare.main(["--dataset=summarize_tldr", *flags]) == 2
    assert "--prompt_tokens needs a number from 1, and --tokenizer" in capsys.readouterr().err
    assert prepare.main(["--dataset=dolly", *flags, "--prompt_tokens=9"]) == 2
    assert "leave it out, because dolly has no rule for prompts that are too long" in capsys.readouterr().err


def test_ratings_on_axes_are_read(tmp_path):
    axes = {"overall": 6, "accuracy": 7, "coverage": 5, "coherence": None, "compatible": True}
    rated = {
        "info": POST,
        "summary": {"text": " Ran.", "policy": "sup2", "note": "", "axes": axes},
        "worker": "ann",
        "batch": "axis1",
        "split": "valid2",
    }
    no_score = {**rated, "summary": {**rated["summary"], "axes": {**axes, "overall": None}}}
    news = {**rated, "info": NEWS, "split": "test"}
    write_lines(tmp_path / "source/axis_evals/axis1.json", [rated, no_score, news])
    splits, report = made("summarize_axis", tmp_path / "source", tmp_path)
    first = {"prompt": PROMPT, "completion": " Ran.", "score": 6.0, "labeler": "ann", "group": "t3_1", "model": "sup2"}
    first |= {"batch": "axis1", "task": "tldr", "overall": 6.0, "accuracy": 7.0, "coverage": 5.0}
    second = first | {"prompt": "Article:\nA fox ran.\nIt rained.\n\nTL;DR:\n", "completion": "Ran.", "group": "n1"}
    assert splits == {"test": [first, second | {"task": "cnndm"}]}
    assert list(report.left_out) == ["the summary has no rating of its overall quality"]


def test_comparisons_of_one_task_can_be_chosen(tmp_path):
    summaries = [{"text": " Ran.", "policy": "a", "note": None}, {"text": " Slept.", "policy": "b", "note": None}]
    row = {"info": POST, "summaries": summaries, "choice": 1, "worker": "w", "batch": "batch3", "split": "train"}
    write_lines(tmp_path / "source/comparisons/batch3.json", [row, {**row, "info": NEWS}])
    splits, report = made("summarize_comparisons", tmp_path / "source", tmp_path, where={"task": "tldr"})
    assert [row["prompt"] for row in splits["train"]] == [PROMPT] and report.not_wanted == 1


def test_the_forms_of_huang_and_trl_equal_openai_s(tmp_path):
    """One post and one comparison in three published forms make the same rows, but for what a form does not say."""
    answer = {"query": PROMPT, "query_token": [1, 2], "reference_response": f" Ran.{EOS}", **POST, "summary": "Ran."}
    compared = {
        "info": {**POST, "site": None, "article": None},
        "summaries": [{"text": " Ran.", "policy": "ref"}, {"text": " Slept.", "policy": "sup4"}],
        "choice": 0,
        "worker": "ann",
        "batch": "batch9",
        "split": "train",
        "extra": {"confidence": 7},
    }
    preprocessed = {"query": PROMPT, "chosen": f" Ran.{EOS}", "rejected": f" Slept.{EOS}"}
    preprocessed |= {"chosen_policy": "ref", "rejected_policy": "sup4"} | compared
    for split in ("train", "validation", "test"):
        write_table(tmp_path / f"huang/data/{split}-00000-of-00001.parquet", [answer])
        write_table(tmp_path / f"trl/data/{split}-00000-of-00001.parquet", [{"prompt": PROMPT, "completion": " Ran."}])
        write_lines(tmp_path / f"openai/{split.replace('validation', 'valid')}.jsonl", [{**POST, "summary": "Ran."}])
    for split in ("train", "validation", "validation_cnndm"):
        write_table(tmp_path / f"huang_pairs/data/{split}-00000-of-00001.parquet", [preprocessed])
        pair = {"prompt": PROMPT, "chosen": " Ran.", "rejected": " Slept."}
        write_table(tmp_path / f"trl_pairs/data/{split}-00000-of-00001.parquet", [pair])
    write_lines(tmp_path / "openai_pairs/comparisons/batch9.json", [compared])

    def first(dataset, source):
        return made(dataset, tmp_path / source, tmp_path / "out")[0]["train"][0]

    openai, pairs = first("summarize_tldr", "openai"), first("summarize_comparisons", "openai_pairs")
    assert first("huang_tldr", "huang") == openai and first("huang_comparisons", "huang_pairs") == pairs
    assert first("trl_tldr", "trl").items() <= openai.items()
    assert first("trl_tldr_preference", "trl_pairs").items() <= pairs.items()


def test_chosen_answers_are_demonstrations(tmp_path):
    dialogue = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"
    for subset in ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled"):
        for split in ("train", "test"):
            row = {"chosen": dialogue + " So.", "rejected": dialogue + " No."}
            write_lines(tmp_path / f"source/{subset}/{split}.jsonl.gz", [row])
    rows = made("hh_rlhf_chosen", tmp_path / "source", tmp_path)[0]["test"]
    assert [(row["prompt"], row["completion"]) for row in rows] == [(dialogue, " So.")] * 4
    as_chat = prepare.prepare(DATASETS["hh_rlhf_chosen"].as_chat(), tmp_path / "source", tmp_path, name="chat")[0]
    assert as_chat.is_dir()
    (record, *_) = corpus(tmp_path, demonstrations="chat:test")._rows("demonstrations")
    assert record.completion == " So."  # the default template's own space
