"""Chats as TRL, OpenAI and ShareGPT publish them, rendered as transformers renders them."""

import json

import pytest
import released_tokenizers as released

from rlhf_jax.config import data_config
from rlhf_jax.data.corpus import FileCorpus
from rlhf_jax.data.record_files import read_rows
from rlhf_jax.data.row_formats import parse_row
from rlhf_jax.data.template import Template
from rlhf_jax.data.text_batches import batch_demonstrations
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.runtime.errors import InputError

ASKED = {"role": "user", "content": "What color is the sky?"}
BLUE, GREEN = ({"role": "assistant", "content": text} for text in ("It is blue.", "It is green."))
PLAIN = "user: What color is the sky?\nassistant:"


def said(record):
    """The prompt and the completions of a record."""
    return record.prompt, getattr(record, "completions", None) or getattr(record, "completion", None)


# The types of TRL's dataset formats, standard and conversational, as its documentation shows them.
TRL = {
    "language modeling": ("documents", {"text": "The sky is blue."}, "The sky is blue."),
    "chat": ("demonstrations", {"messages": [ASKED, BLUE]}, (PLAIN, " It is blue.")),
    "prompt-only": ("prompts", {"prompt": "The sky is"}, ("The sky is", None)),
    "prompt-only chat": ("prompts", {"prompt": [ASKED]}, (PLAIN, None)),
    "prompt-completion": ("demonstrations", {"prompt": "The sky is", "completion": " blue."}, ("The sky is", " blue.")),
    "prompt-completion chat": ("demonstrations", {"prompt": [ASKED], "completion": [BLUE]}, (PLAIN, " It is blue.")),
    "preference": (
        "rankings",
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        ("The sky is", (" blue.", " green.")),
    ),
    "implicit prompt": (
        "rankings",
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        ("The sky is", (" blue.", " green.")),
    ),
    "preference chat": (
        "rankings",
        {"prompt": [ASKED], "chosen": [BLUE], "rejected": [GREEN]},
        (PLAIN, (" It is blue.", " It is green.")),
    ),
    "implicit prompt chat": (
        "rankings",
        {"chosen": [ASKED, BLUE], "rejected": [ASKED, GREEN]},
        (PLAIN, (" It is blue.", " It is green.")),
    ),
    "unpaired": (
        "rankings",
        {"prompt": "The sky is", "completion": " blue.", "label": True},
        ("The sky is", (" blue.",)),
    ),
    "unpaired chat": (
        "rankings",
        {"prompt": [ASKED], "completion": [GREEN], "label": False},
        (PLAIN, (" It is green.",)),
    ),
}
OTHERS = {
    "hh-rlhf": (
        "rankings",
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello, you.", "rejected": "\n\nHuman: Hi\n\nAssistant: Hello, go."},
        ("\n\nHuman: Hi\n\nAssistant:", (" Hello, you.", " Hello, go.")),
    ),
    "hh-rlhf's prompts": (
        "prompts",
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello, you.", "rejected": "\n\nHuman: Hi\n\nAssistant: Hello, go."},
        ("\n\nHuman: Hi\n\nAssistant:", None),
    ),
    "UltraFeedback, binarized": (
        "rankings",
        {
            "prompt": ASKED["content"],
            "prompt_id": "f0e3",
            "chosen": [ASKED, BLUE],
            "rejected": [ASKED, GREEN],
            "messages": [ASKED, BLUE],
            "score_chosen": 8.5,
            "score_rejected": 6.0,
        },
        (PLAIN, (" It is blue.", " It is green.")),
    ),
    "UltraChat": (
        "demonstrations",
        {"prompt": ASKED["content"], "prompt_id": "f0e3", "messages": [ASKED, BLUE]},
        (PLAIN, " It is blue."),
    ),
    "ShareGPT": (
        "demonstrations",
        {
            "id": "x_0",
            "conversations": [{"from": "human", "value": ASKED["content"]}, {"from": "gpt", "value": "Blue."}],
        },
        (PLAIN, " Blue."),
    ),
    "ShareGPT with a system text": (
        "prompts",
        {"system": "Be brief.", "conversations": [{"from": "human", "value": ASKED["content"]}]},
        ("Be brief.\n" + PLAIN, None),
    ),
    "LLaMA-Factory's preferences": (
        "rankings",
        {
            "conversations": [{"from": "human", "value": ASKED["content"]}],
            "chosen": {"from": "gpt", "value": "It is blue."},
            "rejected": {"from": "gpt", "value": "It is green."},
        },
        (PLAIN, (" It is blue.", " It is green.")),
    ),
    "OpenAI's preferences": (
        "rankings",
        {
            "input": {"messages": [ASKED], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [BLUE],
            "non_preferred_output": [GREEN],
        },
        (PLAIN, (" It is blue.", " It is green.")),
    ),
    "OpenAI's content in parts": (
        "demonstrations",
        {
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "What color "}, {"type": "text", "text": "is it?"}],
                },
                BLUE,
            ]
        },
        ("Be brief.\nuser: What color is it?\nassistant:", " It is blue."),
    ),
    "hh-rlhf, several turns": (  # the prompt ends before the last turn that both begin
        "rankings",
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why\n\nAssistant: So.",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why\n\nAssistant: No.",
        },
        ("\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why\n\nAssistant:", (" So.", " No.")),
    ),
    "implicit prompt, several turns": (
        "rankings",
        {"chosen": [ASKED, BLUE, ASKED, BLUE], "rejected": [ASKED, BLUE, ASKED, GREEN]},
        (
            "user: What color is the sky?\nassistant: It is blue.\nuser: What color is the sky?\nassistant:",
            (" It is blue.", " It is green."),
        ),
    ),
    "texts with an assistant and no human are no dialogues": (
        "rankings",
        {"chosen": "Hi\n\nAssistant: yes sir", "rejected": "Hi\n\nAssistant: yes you"},
        ("Hi\n\nAssistant: yes", (" sir", " you")),
    ),
    "implicit prompt of several lines": (
        "rankings",
        {"chosen": "The sky\nYes it is.", "rejected": "The sky\nYesterday."},
        ("The sky\n", ("Yes it is.", "Yesterday.")),
    ),
    "ShareGPT's preferences, the prompt inside": (
        "rankings",
        {
            "chosen": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}],
            "rejected": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "No."}],
        },
        ("user: Hi\nassistant:", (" Yes?", " No.")),
    ),
    "ShareGPT's tool": (
        "prompts",
        {
            "conversations": [
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "I look."},
                {"from": "observation", "value": "42"},
            ]
        },
        ("user: Hi\nassistant: I look.\ntool: 42\nassistant:", None),
    ),
    "other names of roles": (
        "prompts",
        {
            "messages": [
                ASKED,
                {"role": "model", "content": "I look."},
                {"role": "function", "name": "look", "content": "42"},
                {"from": "chatgpt", "value": "So."},
                {"role": "human", "content": "Yes?"},
            ]
        },
        ("user: What color is the sky?\nassistant: I look.\ntool: 42\nassistant: So.\nuser: Yes?\nassistant:", None),
    ),
    "Nectar": (
        "rankings",
        {
            "prompt": "\n\nHuman: Hi\n\nAssistant: ",
            "answers": [
                {"answer": "Hello!", "model": "gpt-4", "rank": 2.0},
                {"answer": "Hi, you.", "model": "llama", "rank": 1.0},
                {"answer": "Go.", "model": "anthropic", "rank": 3.0},
            ],
            "turns": 1,
            "num_responses": 3,
            "good_natured": True,
        },
        ("\n\nHuman: Hi\n\nAssistant:", (" Hello!", " Hi, you.", " Go.")),
    ),
    "Nectar's prompts": (
        "prompts",
        {"prompt": "\n\nHuman: Hi\n\nAssistant: ", "answers": [{"answer": "Hello!", "model": "gpt-4", "rank": 1.0}]},
        ("\n\nHuman: Hi\n\nAssistant:", None),
    ),
    "K chats ranked": (
        "rankings",
        {"prompt": [ASKED], "completions": [[GREEN], [BLUE], "Red."], "ranks": [2, 1, 3]},
        (PLAIN, (" It is green.", " It is blue.", " Red.")),
    ),
}


@pytest.mark.parametrize("name", TRL | OTHERS)
def test_a_published_form_is_read_from_a_file(tmp_path, name):
    kind, row, expected = (TRL | OTHERS)[name]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    [record], _ = read_rows(path, kind)
    assert (record.text if kind == "documents" else said(record)) == expected
    if kind != "documents":
        assert record.row == row
    if kind == "rankings":
        assert record.ranks == ((2, 1, 3) if len(record.completions) == 3 else (1, 2)[: len(record.completions)])
        assert record.models == (("gpt-4", "llama", "anthropic") if "answers" in row else None)
        assert record.scores == ((float(row["label"]),) if "label" in row else None)


def test_the_table_of_a_chat_has_nulls(tmp_path):
    """Parquet gives each message all fields that any message of the file has."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    call = [{"function": {"name": "look", "arguments": "{}"}}]
    rows = [
        {"messages": [ASKED | {"name": None, "tool_calls": None}, BLUE | {"name": "x", "tool_calls": None}]},
        {
            "messages": [
                ASKED | {"name": None, "tool_calls": None},
                {"role": "assistant", "content": None, "name": None, "tool_calls": call},
            ]
        },
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    template = Tokenizer.load(released.save(tmp_path, "qwen", released.TOOLS)).chat_template()
    records, _ = read_rows(tmp_path / "rows.parquet", "demonstrations", template)
    assert records[0].completion == "It is blue."
    assert records[1].completion == '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'


# Several turns.

DIALOGUE = [
    {"role": "system", "content": "Be kind."},
    ASKED,
    BLUE,
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Light scatters."},
    {"role": "user", "content": "Thanks."},
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    sources = {"tools": (released.TOOLS, "qwen")} | {name: entry[:2] for name, entry in released.TEMPLATES.items()}
    return {name: released.save(tmp_path_factory.mktemp(name), kind, text) for name, (text, kind) in sources.items()}


@pytest.mark.parametrize("name", ["chatml", "qwen3", "llama3", "zephyr", "tools"])
def test_all_turns_are_learned_behind_the_prompts_that_transformers_writes(folders, name):
    """Each turn is a demonstration behind what transformers gives a model that is to write it."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folders[name])
    tokenizer = Tokenizer.load(folders[name]).for_chat()
    record = parse_row({"messages": DIALOGUE}, "demonstrations", tokenizer.chat_template(), turns="all")
    last = parse_row({"messages": DIALOGUE}, "demonstrations", tokenizer.chat_template())
    assert (last.prompt, last.completion, last.earlier) == (record.prompt, record.completion, ())
    batch, _ = batch_demonstrations(record.each, tokenizer, 200)
    assert len(batch.tokens) == 2
    for ids, mask, loss, end in zip(batch.tokens, batch.segment_ids, batch.loss_mask, (2, 4)):
        ids, loss = ids[mask > 0].tolist(), loss[mask > 0]
        before = theirs.apply_chat_template(DIALOGUE[:end], add_generation_prompt=True)["input_ids"]
        assert ids[: len(before)] == before and loss.tolist() == [0] * len(before) + [1] * (len(ids) - len(before))
        whole = theirs.apply_chat_template(DIALOGUE[: end + 1])["input_ids"]
        assert ids == whole[: len(ids)] and ids[-1] == tokenizer.eos_id


def test_which_turns_are_learned():
    def replies(messages, **row):
        record = parse_row({"messages": messages, **row}, "demonstrations", turns="all")
        return [pair.completion for pair in record.each]

    assert replies(DIALOGUE) == [" It is blue.", " Light scatters."]
    assert replies([BLUE, *DIALOGUE[3:]]) == [" Light scatters."]  # nothing stands before the first turn
    weighed = [turn | ({"weight": int(turn != BLUE)} if turn["role"] == "assistant" else {}) for turn in DIALOGUE]
    assert replies(weighed) == [" Light scatters."]
    row = {"prompt": DIALOGUE[:4], "completion": DIALOGUE[4:5]}
    record = parse_row(row, "demonstrations", turns="all")
    assert not record.earlier and record.completion == " Light scatters."  # the turns of the prompt are its own


def test_all_turns_of_a_chat_lie_in_one_split_and_no_prompt_in_two(tmp_path):
    def turn(role, content):
        return {"role": role, "content": content}

    rows = [
        {
            "messages": [
                turn("user", f"question {n // 2}"),  # two chats begin with each question
                turn("assistant", "what?"),
                turn("user", f"this, {n}"),
                turn("assistant", "that"),
            ]
        }
        for n in range(80)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = data_config().files
    config.update(dir=str(tmp_path), demonstrations="rows.jsonl@40*1", turns="all", test_share=0.3, valid_share=0.3)
    corpus = FileCorpus(config, Template(), "error")
    splits = {name: corpus.demonstrations(name) for name in ("train", "valid", "test")}
    assert sum(map(len, splits.values())) == 80  # 40 rows of two turns
    [source] = corpus.mixed("demonstrations", "train")
    assert source.rows == splits["train"]
    places = {}
    for name, found in splits.items():
        for row in found:
            places.setdefault(row.prompt, set()).add(name)
            places.setdefault(row.row["messages"][2]["content"], set()).add(name)
    assert all(len(names) == 1 for names in places.values()) and len(places) == 40 + 40 + 40


# Tools.

SCHEMA = {
    "type": "function",
    "function": {
        "name": "control_light",
        "description": "Controls the lights in a room.",
        "parameters": {"type": "object", "properties": {"room": {"type": "string", "description": "Room <|im_end|>"}}},
    },
}
CALL = {"type": "function", "function": {"name": "control_light", "arguments": {"room": "거실 <b>"}}}
CALLS = [
    {"role": "user", "content": "Turn on the lights."},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "name": "control_light", "content": "The lights are on."},
    {"role": "assistant", "content": "Done!"},
]


def test_tools_are_written_as_by_transformers(folders):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folders["tools"])
    tokenizer = Tokenizer.load(folders["tools"]).for_chat()
    as_openai = [dict(turn) for turn in CALLS]
    written = json.dumps(CALL["function"]["arguments"])
    as_openai[1] = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_1", "type": "function", "function": CALL["function"] | {"arguments": written}}],
    }
    as_sharegpt = [
        {"from": "human", "value": CALLS[0]["content"]},
        {"from": "function_call", "value": json.dumps(CALL["function"])},
        {"from": "observation", "value": CALLS[2]["content"]},
        {"from": "gpt", "value": "Done!"},
    ]
    rows = [
        {"messages": CALLS, "tools": [SCHEMA | {"strict": None}]},  # as a table has it, where other rows say it
        {"messages": as_openai, "tools": [SCHEMA], "parallel_tool_calls": False},
        {"conversations": as_sharegpt, "tools": json.dumps([SCHEMA])},
        {"prompt": CALLS[:1], "completion": CALLS[1:], "tools": [SCHEMA]},
    ]
    for row in rows:
        record = parse_row(row, "demonstrations", tokenizer.chat_template(), turns="all")
        batch, _ = batch_demonstrations(record.each, tokenizer, 400)
        for ids, mask, end in zip(batch.tokens, batch.segment_ids, (1, 3), strict=True):
            ids = ids[mask > 0].tolist()
            options = {"tools": [SCHEMA], "sanitize_control_tokens": True}
            whole = theirs.apply_chat_template(CALLS[: end + 1], **options)["input_ids"]
            assert ids == whole[: len(ids)] and ids[-1] == tokenizer.eos_id and len(whole) - len(ids) <= 1
        assert ids.count(tokenizer.eos_id) == 5  # what looks like an end of a turn in a tool's description is text


def test_what_a_template_would_leave_out_is_refused(folders):
    plain, smol = Template(), Tokenizer.load(folders["chatml"]).chat_template()
    zephyr = Tokenizer.load(folders["zephyr"]).chat_template()
    result = [*CALLS[:1], {"role": "assistant", "content": "?"}, *CALLS[2:3]]
    assert parse_row({"messages": result}, "prompts", plain).prompt.endswith("\ntool: The lights are on.\nassistant:")
    assert "<|im_start|>tool\nThe lights are on.<|im_end|>" in parse_row({"messages": result}, "prompts", smol).prompt
    for template, row, words in (
        (
            plain,
            {"messages": CALLS},
            "'tool_calls' has calls of tools, which the plain template cannot write; set data",
        ),
        (plain, {"messages": CALLS[:1], "tools": [SCHEMA]}, "field 'tools' has calls"),
        (smol, {"messages": CALLS}, "the chat template does not write the field 'tool_calls'"),
        (smol, {"messages": CALLS[:1], "tools": [SCHEMA]}, "the chat template does not write the field 'tools'"),
        (zephyr, {"messages": result}, "the chat template does not write the turns of tools"),
    ):
        with pytest.raises(InputError, match=words):
            parse_row(row, "prompts", template)


# Bad rows.

PICTURE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
STEPS = {"prompt": "Which is larger?", "completions": ["a", "b"], "labels": [True, False]}
BAD = [
    (
        "prompts",
        {"messages": [{"role": "narrator", "content": "x"}]},
        "'messages[0].role' is \"narrator\"; roles are system,",
    ),
    ("prompts", {"conversations": [{"from": "bing", "value": "x"}]}, "field 'conversations[0].from' is \"bing\""),
    ("prompts", {"conversations": [{"from": "human"}]}, "field 'conversations[0].value' is null"),
    ("prompts", {"conversations": []}, "field 'conversations' is empty; a chat has at least one turn"),
    ("prompts", {"prompt": []}, "field 'prompt' is empty; a chat has at least one turn"),
    ("prompts", {"prompt": [ASKED, BLUE]}, "field 'prompt' ends with a turn of the assistant"),
    ("prompts", {"messages": [ASKED, DIALOGUE[0]]}, "field 'messages[1]' is a system turn after another turn"),
    (
        "prompts",
        {"messages": [{"role": "user", "content": [PICTURE]}]},
        "'messages[0].content[0].type' is \"image_url\"; only",
    ),
    ("prompts", {"messages": [{"role": "user", "content": [3]}]}, "'messages[0].content[0]' is a number"),
    ("prompts", {"messages": [{"role": "user", "content": []}]}, "field 'messages[0].content' is empty"),
    ("prompts", {"messages": [ASKED | {"tool_calls": [CALL]}]}, "belongs to a turn of the user; the assistant calls"),
    (
        "prompts",
        {"messages": [BLUE | {"tool_calls": ["x"]}, ASKED]},
        "field 'messages[0].tool_calls[0]' is \"x\"; a call",
    ),
    ("prompts", {"messages": [ASKED], "tools": "x"}, "field 'tools' is \"x\"; it must be JSON"),
    ("prompts", {"messages": [ASKED], "tools": ["x"]}, "field 'tools' is [\"x\"]; it must be a list of JSON schemas"),
    ("prompts", {"messages": [ASKED], "prompt": "other"}, "no turn has this prompt; keep one"),
    ("demonstrations", {"messages": [ASKED, BLUE], "prompt": BLUE["content"]}, "no turn has this prompt; keep one"),
    ("demonstrations", {"messages": [ASKED]}, "needs an assistant turn after another turn"),
    ("demonstrations", {"prompt": [ASKED], "completion": [ASKED]}, "field 'completion' needs an assistant turn"),
    ("demonstrations", {"prompt": "x", "completion": [BLUE]}, "field 'completion' has messages and the prompt is text"),
    ("demonstrations", {"messages": [ASKED, BLUE | {"weight": 2}]}, "'messages[1].weight' is 2; it must be 0 or 1"),
    (
        "rankings",
        {"prompt": [ASKED], "chosen": [BLUE], "rejected": [ASKED]},
        "field 'rejected' has turns of user; a completion is one turn of the assistant",
    ),
    ("rankings", {"chosen": [ASKED, BLUE], "rejected": [DIALOGUE[3], GREEN]}, "share no turn, so there is no prompt"),
    (
        "rankings",
        {"prompt": [ASKED], "chosen": [BLUE], "rejected": [BLUE, ASKED]},
        "has turns of assistant, user; a comp",
    ),
    (
        "rankings",
        {"chosen": [ASKED, BLUE], "rejected": [ASKED, ASKED]},
        "'rejected' must have one of the assistant after",
    ),
    ("rankings", {"chosen": [ASKED, BLUE], "rejected": [ASKED, GREEN, ASKED, BLUE]}, "after them; it has 3"),
    ("rankings", {"chosen": [ASKED, BLUE], "rejected": [ASKED, BLUE]}, "'rejected' are the same; leave the row out"),
    ("rankings", {"chosen": [ASKED, BLUE], "rejected": [ASKED, GREEN], "prompt": "x"}, "no turn has this prompt"),
    ("rankings", {"chosen": "Yes", "rejected": "No"}, "begin differently, so there is no prompt in them"),
    ("rankings", {"question": "Is it?", "chosen": "It is", "rejected": "It isn't"}, "needs one of the fields prompt"),
    (
        "rankings",
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
            "rejected": "\n\nHuman: a\n\nAssistant: e",
        },
        "differ before the last turn",
    ),
    ("rankings", STEPS, "judges the steps of one answer (stepwise supervision), which no stage learns"),
    ("rankings", {"preferred_output": [BLUE], "non_preferred_output": [GREEN]}, "field 'input' must be an object"),
    (
        "rankings",
        {
            "input": {"messages": [ASKED], "tools": [SCHEMA]},
            "preferred_output": [BLUE],
            "non_preferred_output": [GREEN],
        },
        "field 'tools' has calls of tools, which the plain template cannot write",
    ),
    ("rankings", {"prompt": "Hi", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 0}]}, "'ranks' is"),
    (
        "rankings",
        {"chosen": [ASKED, BLUE], "rejected": [ASKED, GREEN], "messages": [DIALOGUE[3], BLUE]},
        "fields 'messages' and 'chosen' belong to different formats",
    ),
    (
        "rankings",
        {"prompt": [DIALOGUE[3]], "chosen": [ASKED, BLUE], "rejected": [ASKED, GREEN]},
        "fields 'prompt' and 'chosen' belong to different formats",
    ),
    ("rankings", {"chosen": "Yes", "rejected": "Yes"}, "are the same text, and one is ranked"),
    (
        "rankings",
        {"chosen": [BLUE, ASKED, BLUE], "rejected": [BLUE, ASKED, ASKED]},
        "must have one of the assistant after",
    ),
    ("rankings", {"prompt": "Hi", "answers": ["a", "b"]}, "needs one of the fields chosen, completions, completion"),
]


@pytest.mark.parametrize(("kind", "row", "words"), BAD)
def test_a_bad_chat_is_one_sentence_with_file_and_line(tmp_path, kind, row, words):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + json.dumps(row) + "\n")
    with pytest.raises(InputError) as caught:
        read_rows(path, kind)
    assert str(caught.value).startswith(f"{path}:2: ") and words in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
