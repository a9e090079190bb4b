"""Reward functions: how a config names them, what is wrong with one, and what the ready ones say."""

import http.server
import json
import sys
import textwrap
import threading

import numpy as np
import pytest

from rlhf_jax import rewards
from rlhf_jax.data.records import Prompt
from rlhf_jax.fields import rewards as forms
from rlhf_jax.rewards import functions
from rlhf_jax.rewards.functions import RewardFunction
from rlhf_jax.runtime.errors import InputError

PROMPTS = [Prompt("Add 2 and 3.", {"answer": "5"}), Prompt("Add 4 and 4.", {"answer": "8"}), Prompt("Say no.", {})]
TEXTS = ["5", "eight", "no"]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module of reward functions where the import finds it; returns the function that writes it."""
    monkeypatch.syspath_prepend(tmp_path)
    written = []

    def write(source, name="my_rewards"):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source), encoding="utf-8")
        written.append(name)

    yield write
    for name in written:
        sys.modules.pop(name, None)


def function(text, field="ppo.reward"):
    return RewardFunction(forms.one(text), field)


def test_a_field_names_models_and_functions_with_options_and_names():
    found = forms.several(
        "helpful=../runs/a/reward_model, rlhf_jax.rewards:expression(pattern='a,b)', whole=True), "
        "short=my_rewards:length(limit=-4, words=['x', 'y'])"
    )
    assert [reward.name for reward in found] == ["helpful", "expression", "short"]
    assert [reward.model for reward in found] == ["../runs/a/reward_model", "", ""]
    assert found[1].function == "rlhf_jax.rewards:expression" and found[1].options == {"pattern": "a,b)", "whole": True}
    assert found[2].options == {"limit": -4, "words": ["x", "y"]}
    assert forms.models("reward_model") == ["reward_model"] and forms.models("a:b") == forms.models("") == []


@pytest.mark.parametrize(
    "text",
    ["", "a:b(", "a:b(1)", "a:b(x=y)", "a:b(**{})", "x=", "m,m", "a:f,b:f", "a:b(x=1", "a:b(x=open('f'))", "a,,b"],
)
def test_other_forms_are_refused_and_nothing_in_them_is_executed(text):
    with pytest.raises(ValueError):
        forms.several(text)
    assert not forms.REWARDS.holds(text)


def test_a_function_gets_texts_prompts_and_rows_with_all_their_fields(module):
    module(
        """
        def f(texts, prompts, rows, scale=1.0):
            found = [scale * (text == row.get("answer")) + len(prompt) / 100 for text, prompt, row in zip(texts, prompts, rows)]
            texts.clear(), rows[0].clear()
            return found
        """
    )
    scores = function("my_rewards:f(scale=2.0)")(PROMPTS, TEXTS)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, [2.12, 0.12, 0.07], atol=1e-6)
    assert len(TEXTS) == 3 and PROMPTS[0].row == {
        "answer": "5"
    }  # what it does to its arguments is nobody else's business


WRONG = {
    "there is no module my_reward; put my_reward.py beside the experiment file": "my_reward:f",
    "my_rewards.py has no function lenght; did you mean length?": "my_rewards:lenght",
    "NUMBER in .*my_rewards.py is float, and must be a function of \\(texts, prompts, rows\\)": "my_rewards:NUMBER",
    "must take \\(texts, prompts, rows\\): too many positional arguments": "my_rewards:one",
    "must take \\(texts, prompts, rows, limits\\): got an unexpected keyword argument 'limits'": "my_rewards:two(limits=3)",
    "must take \\(texts, prompts, rows\\): missing a required argument: 'limit'": "my_rewards:length",
    "importing broken raised SyntaxError: .* \\(broken.py, line 2\\)": "broken:f",
    "importing failing raised ZeroDivisionError: division by zero \\(failing.py, line 2\\)": "failing:f",
    "importing incomplete raised ModuleNotFoundError: No module named 'nopackage'": "incomplete:f",
    "pattern='\\(' is no regular expression: missing \\)": "rlhf_jax.rewards:expression(pattern='(')",
    "unit='lines' must be 'words' or 'characters'": "rlhf_jax.rewards:length(unit='lines')",
    "there is no command not-a-command": "rlhf_jax.rewards:command(command='not-a-command --fast')",
    "host='http://a' must be the name or the address": "rlhf_jax.rewards:server(port=80, host='http://a')",
    "port=0 must be a whole number from 1": "rlhf_jax.rewards:server(port=0)",
}


@pytest.mark.parametrize("sentence", WRONG)
def test_a_function_that_is_not_there_or_does_not_fit_is_one_sentence(module, sentence):
    module(
        "NUMBER = 1.0\ndef length(texts, prompts, rows, limit): pass\ndef one(texts): pass\ndef two(a, b, c): pass\n"
    )
    module("\ndef f(:\n", "broken")
    module("\n1 / 0\n", "failing")
    module("import nopackage\n", "incomplete")
    with pytest.raises(InputError, match=f"ppo.reward.*{sentence}") as raised:
        function(WRONG[sentence])
    assert "\n" not in str(raised.value)


FAILS = {
    'raised ZeroDivisionError: division by zero \\(my_rewards.py, line 1\\) for the prompt "Add 4 and 4."': (
        "return [1 / (len(text) - 5) for text in texts]"
    ),
    'raised RuntimeError: never \\(my_rewards.py, line 1\\) for the prompt "Add 2 and 3."': "raise RuntimeError('never')",
    'raised ValueError: several \\(my_rewards.py, line 1\\) for a batch that begins with the prompt "Add 2 and 3."': (
        "\n if len(texts) > 1: raise ValueError('several')\n return [0.0]"
    ),
    'returned nan for the prompt "Add 4 and 4."': "return [0.0, float('nan'), 0.0]",
    'returned inf for the prompt "Say no."': "return [0.0, 0.0, 1e39]",
    'returned 2 scores for a batch of 3 completions, .* begins with the prompt "Add 2 and 3."': "return [0.0, 1.0]",
    "returned NoneType for a batch of 3": "pass",
    "returned 3 values for a batch of 3": "return ['good', 'bad', 'good']",
    "returned an array of shape \\(3, 1\\)": "return [[0.0], [0.0], [0.0]]",
}


@pytest.mark.parametrize("sentence", FAILS)
def test_a_function_that_fails_says_at_which_prompt(module, sentence):
    module(f"def f(texts, prompts, rows): {FAILS[sentence]}\n")
    with pytest.raises(InputError, match=f"ppo.reward: my_rewards:f {sentence}".replace("line 1", "line \\d")):
        function("my_rewards:f")(PROMPTS, TEXTS)


def test_length_counts_words_or_characters_beyond_its_limit():
    texts = ["", "one", "one two  three\nfour"]
    assert rewards.length(texts, [], [], limit=2) == [0, 0, -2]
    assert rewards.length(texts, [], [], limit=4, unit="characters") == [0, 0, -15]


def test_an_expression_is_found_or_matches_all():
    texts = ["It is 42.", " 42 ", "none"]
    assert rewards.expression(texts, [], [], pattern=r"\d+") == [1, 1, 0]
    assert rewards.expression(texts, [], [], pattern=r"\d+", whole=True) == [0, 1, 0]


def test_an_expression_without_end_is_stopped(monkeypatch):
    monkeypatch.setattr("rlhf_jax.rewards.texts._SECONDS", 0.1)
    scored = function("rlhf_jax.rewards:expression(pattern='(a|aa)+(b|bb)+$')")
    with pytest.raises(InputError, match='raised TimeoutError: .* for the prompt "Say no."'):
        scored(PROMPTS, ["ab", "", "a" * 100 + "b" * 100 + "c"])


ANSWERS = [  # text, answer of the row, with the mark alone, with the last number otherwise
    ("So it is 3 + 2 = 5.\n#### 5", "2 + 3 = <<2+3=5>>5\n#### 5", 1, 1),
    ("#### $1,000.00", "#### 1000", 1, 1),
    ("#### 1,000 ", 1000, 1, 1),
    ("The answer is 5.", "#### 5", 0, 1),
    ("5 it is, not 6", "#### 5", 0, 0),
    ("#### 6\nno, #### 5\nreally", "#### 5", 1, 1),
    ("#### -5", "#### 5", 0, 0),
    ("#### Paris", "paris", 1, 1),
    ("####", "#### 5", 0, 0),
    ("", "#### 5", 0, 0),
    ("#### 5 apples", "#### 5", 0, 0),
]


def test_the_answer_of_gsm8k_is_the_number_after_the_mark():
    texts, answers, strict, flexible = zip(*ANSWERS)
    rows = [{"answer": answer} for answer in answers]
    assert rewards.answer(texts, [], rows) == list(strict)
    assert rewards.answer(texts, [], rows, last_number=True) == list(flexible)
    assert rewards.answer(["A: b"], [], [{"label": "B"}], field="label", mark="A:") == [1]


def test_a_row_without_an_answer_is_named():
    with pytest.raises(InputError, match="the row has no answer: its field 'answer' is None.*\"Say no.\""):
        function("rlhf_jax.rewards:answer")(PROMPTS, TEXTS)


JUDGE = """
import json, sys
asked = json.load(sys.stdin)
assert sorted(asked) == ["prompts", "rows", "texts"]
print(json.dumps({"scores": [len(text) + len(row) for text, row in zip(asked["texts"], asked["rows"])]}))
"""


def test_a_command_judges_in_json(tmp_path):
    (tmp_path / "judge.py").write_text(JUDGE)
    scored = function(f"rlhf_jax.rewards:command(command=[{sys.executable!r}, {str(tmp_path / 'judge.py')!r}])")
    assert scored(PROMPTS, TEXTS).tolist() == [2, 6, 2]


@pytest.mark.parametrize(
    "program, sentence",
    [
        ("import sys; sys.exit('no model')", "ended with status 1: no model"),
        ("print('{\"scores\": [1')", "answered '{\"scores\": \\[1\\\\n', and must answer"),
        ("import time; time.sleep(60)", "took more than 0.5 seconds for a batch"),
    ],
)
def test_a_command_that_fails_is_one_sentence(program, sentence):
    scored = function(f"rlhf_jax.rewards:command(command={[sys.executable, '-c', program]!r}, seconds=0.5)")
    if "sleep" not in program:
        scored = function(f"rlhf_jax.rewards:command(command={[sys.executable, '-c', program]!r})")
    with pytest.raises(InputError, match=sentence):
        scored(PROMPTS[:1], TEXTS[:1])


@pytest.fixture
def server():
    """A judge on a port of this machine: its scores are the lengths of the texts; /down and /elsewhere are as they say."""

    class Judge(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            said = json.dumps({"scores": [len(text) for text in asked["texts"]]}).encode()
            self.send_response({"/down": 503, "/elsewhere": 302}.get(self.path, 200))
            self.send_header("Location", "http://example.org/")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_):
            pass

    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield serving.server_port
    serving.shutdown()
    serving.server_close()


def test_a_server_on_this_machine_judges_in_json(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:1")
    assert function(f"rlhf_jax.rewards:server(port={server})")(PROMPTS, TEXTS).tolist() == [1, 5, 2]
    for path, status in {"/down": 503, "/elsewhere": 302}.items():
        with pytest.raises(InputError, match=f"server at localhost:{server} answered with status {status}"):
            function(f"rlhf_jax.rewards:server(port={server}, path='{path}')")(PROMPTS, TEXTS)


def test_a_server_that_is_not_there_is_one_sentence_and_another_machine_is_announced(capsys):
    with pytest.raises(InputError, match="the server at localhost:1 cannot be asked: .*refused.* for the prompt"):
        function("rlhf_jax.rewards:server(port=1)")(PROMPTS, TEXTS)
    assert not capsys.readouterr().out
    function("rlhf_jax.rewards:server(port=1, host='judge.example.org')")
    assert "sent to judge.example.org:1" in capsys.readouterr().out


def test_a_file_of_the_user_has_a_checksum_and_does_not_hide_a_package(module, tmp_path, monkeypatch):
    module("def f(texts, prompts, rows): return [0.0] * len(texts)\n")
    before = function("my_rewards:f").checksum
    module("def f(texts, prompts, rows): return [1.0] * len(texts)\n")
    assert before != function("my_rewards:f").checksum
    monkeypatch.setattr(sys, "path", sys.path.copy())
    functions.let_import(str(tmp_path / "here"), str(tmp_path / "here"))
    assert sys.path[-1] == str(tmp_path / "here") and sys.path.count(str(tmp_path / "here")) == 1
