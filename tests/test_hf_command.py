"""python -m rlhf_jax.hf: models in from a folder or a hub, stages of a run out."""

import base64
import dataclasses
import functools
import hashlib
import http.server
import json
import os
import pathlib
import re
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
import tiny
import toy
from released import read_tensors, save_llama, torch_and_transformers, write_tensors
from test_hf import bits

from rlhf_jax import checkpoint, hf, model, notes, ppo, shapes, sharding, weights
from rlhf_jax import run as run_lib
from rlhf_jax.data.files import checksum
from rlhf_jax.data.fitting import pad_right
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.hf import __main__ as command
from rlhf_jax.runtime import files
from rlhf_jax.runtime.errors import InputError

ROOT = pathlib.Path(__file__).parent.parent


def written_nothing(folder: pathlib.Path) -> bool:
    return not folder.exists() and not list(folder.parent.glob(f".{folder.name}*"))


def test_import_copies_a_checked_model(tmp_path, capsys):
    source, folder = save_llama(tmp_path / "in"), tmp_path / "models" / "out"
    (source / "tokenizer.json").write_text("{}")
    (source / "secrets.txt").write_text("x")
    assert command.main(["import", str(source), str(folder)]) == 0
    assert "llama language model of 15,096 parameters" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert bits(folder) == bits(source)
    assert command.main(["export", str(folder), str(tmp_path / "again"), "--dtype=bfloat16"]) == 0
    assert {str(dtype) for dtype, _, _ in bits(tmp_path / "again").values()} == {"bfloat16"}
    assert json.loads((tmp_path / "again" / "config.json").read_text())["dtype"] == "bfloat16"
    assert (
        folder / "model.safetensors"
    ).stat().st_mode & 0o044 == folder.stat().st_mode & 0o044  # not its owner's alone


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (
            ["import", "nowhere/model", "{dst}"],
            "nowhere/model is not a folder; if it is a name on the Hugging Face hub, add --hub",
        ),
        (["import", "{bad}", "{dst}"], "tensor 'model.norm.weight' is missing"),
        (["export", "nowhere", "{dst}"], "nowhere is not a folder; give a finished stage"),
        (["import", "{good}", "{good}"], "in exists already; remove it or give another folder"),
        (["import", "{good}", "{dst}", "--shard_gb=0"], "--shard_gb=0.0 must be positive"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(tmp_path, capsys, arguments, sentence):
    good, bad = save_llama(tmp_path / "in"), save_llama(tmp_path / "bad")
    write_tensors(bad, {name: x for name, x in read_tensors(bad).items() if name != "model.norm.weight"})
    before = bits(good)
    filled = [argument.format(good=good, bad=bad, dst=tmp_path / "out") for argument in arguments]
    assert command.main(filled) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert written_nothing(tmp_path / "out") and bits(good) == before


def test_a_stop_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    source = save_llama(tmp_path / "in")
    monkeypatch.setattr(files, "write_json", stop)
    monkeypatch.setattr(hf, "write_json", stop)
    assert command.main(["import", str(source), str(tmp_path / "out")]) == 130
    assert written_nothing(tmp_path / "out")


# ---------------------------------------------------------------------------- the hub


class Hub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks a hub, answered from folders by the names of repositories."""

    folders: dict
    asked: list
    uploaded: list
    commit = "1" * 40

    def do_HEAD(self):
        self.answer(body=False)

    def do_POST(self):
        """Takes an upload from whoever has the token."""
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(self.path)
        if self.headers.get("Authorization") != "Bearer good":
            self.send_response(401)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if self.path.endswith("/create"):
            self.uploaded.append(json.loads(sent))
            self.send(b'{"url": "https://huggingface.co/someone/mine"}', True)
        elif "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(sent)["files"]]
            self.send(json.dumps({"files": [file | {"shouldIgnore": False} for file in files]}).encode(), True)
        elif self.path.endswith("/validate-yaml"):  # of the card
            self.send(b'{"warnings": [], "errors": []}', True)
        else:
            self.uploaded += map(json.loads, sent.splitlines())
            self.send(
                json.dumps(
                    {"commitUrl": f"https://huggingface.co/someone/mine/commit/{self.commit}", "commitOid": self.commit}
                ).encode(),
                True,
            )

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path = self.path.partition("?")[0]
        self.asked.append(path)
        found = re.match(
            r"/(api/models/)?(?P<repo>someone/\w+)(/(?P<what>tree|revision|resolve)/[^/]+(/(?P<file>.+))?)?$", path
        )
        if not found or found["repo"] not in self.folders:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        files = {file.name: file for file in self.folders[found["repo"]].iterdir()}
        if found["what"] == "resolve":
            return self.send(files[found["file"]].read_bytes(), body)
        if found["what"] == "tree":
            listed = [
                {"type": "file", "path": name, "oid": "0" * 40, "size": file.stat().st_size}
                for name, file in files.items()
            ]
            return self.send(json.dumps(listed).encode(), body)
        info = {"id": found["repo"], "sha": self.commit, "siblings": [{"rfilename": name} for name in files]}
        self.send(json.dumps(info).encode(), body)

    def send(self, data, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    folders = {f"someone/{name}": save_llama(tmp_path / name) for name in ("tiny", "pickled")}
    for folder in folders.values():
        (folder / "pytorch_model.bin").write_bytes(b"not wanted")
        (folder / "modeling.py").write_text("raise SystemExit")
    (folders["someone/pickled"] / "model.safetensors").unlink()
    handler = type("Handler", (Hub,), {"folders": folders, "asked": [], "uploaded": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def environment_of(url, home):
    """The environment of a process that knows this hub alone."""
    kept = {
        name: value for name, value in os.environ.items() if "proxy" not in name.lower() and not name.startswith("HF_")
    }
    return kept | {"HF_ENDPOINT": url, "HF_HOME": str(home), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


def test_a_model_is_uploaded_when_asked_for_and_nothing_beside_it(tmp_path, hub):
    handler, url = hub
    folder = handler.folders["someone/tiny"]
    (folder / "README.md").write_text("a card")
    (folder / "token.txt").write_text("not wanted")
    code = "import sys; from rlhf_jax.hf.__main__ import main; sys.exit(main(sys.argv[1:]))"

    def push(*arguments, **environment):
        known = environment_of(url, tmp_path / "home") | environment
        command = [sys.executable, "-c", code, "push", *map(str, arguments)]
        return subprocess.run(command, env=known, capture_output=True, text=True, timeout=120)

    found = push(folder, "someone/mine", "--private", HF_TOKEN="good")
    assert found.returncode == 0, found.stderr
    assert "llama language model of 15,096 parameters" in found.stdout
    made = handler.uploaded[0]  # versions of huggingface_hub write it in one of two ways
    assert made["name"] == "mine" and (made.get("private") is True or made.get("visibility") == "private")
    files = {line["value"]["path"]: line["value"] for line in handler.uploaded[1:] if line["key"] == "file"}
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    for name, sent in files.items():
        assert base64.b64decode(sent["content"]) == (folder / name).read_bytes()

    for environment, sentence in (
        (
            {},
            "someone/mine cannot be uploaded to the Hugging Face hub: .* log in with `hf auth login`, or set HF_TOKEN",
        ),
        ({"HF_HUB_OFFLINE": "1"}, "someone/mine cannot be uploaded to the Hugging Face hub: .*HF_HUB_OFFLINE"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "someone/mine cannot be uploaded to the Hugging Face hub: "),
    ):
        found = push(folder, "someone/mine", **environment)
        assert found.returncode == 2 and re.search(sentence, found.stderr), found.stderr
        assert "Traceback" not in found.stderr and len(found.stderr.splitlines()) == 1


def test_a_model_is_downloaded_when_asked_for(tmp_path, hub):
    handler, url = hub
    environment = environment_of(url, tmp_path / "home")
    code = "import sys; from rlhf_jax.hf.__main__ import main\n" + "\n".join(
        f"print(main(['import', 'someone/{name}', {str(tmp_path / 'out' / name)!r}, '--hub']))"
        for name in ("tiny", "pickled", "else")
    )
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert re.sub(r"\n.*/tiny: .*", "", "\n" + found.stdout).split() == ["0", "2", "2"], found.stderr
    assert bits(tmp_path / "out" / "tiny") == bits(handler.folders["someone/tiny"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tiny"]
    assert "someone/pickled has no safetensors on the hub" in found.stderr
    assert (
        "someone/else cannot be downloaded from the Hugging Face hub" in found.stderr
        and "Traceback" not in found.stderr
    )
    assert not any(path.endswith((".bin", ".py")) for path in handler.asked)


# ---------------------------------------------------------------------------- stages of a run


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the cat sat on the mat . the dog sat too ."], 280)


@pytest.fixture
def workdir(tmp_path):
    """A work directory with a finished policy and a finished reward model, without having trained them."""
    config = toy.get_config("reward_model")
    config.mesh.update(data=4, fsdp=2)  # of another machine
    config.model.attention = "splash"
    path = tmp_path / "run"
    for stage, head in (("sft", "lm"), ("reward_model", "scalar")):
        (path / stage).mkdir(parents=True)
        shape = run_lib.model_shape(toy.get_config(), tokenizer().vocab_size, "cpu")
        params = tiny.params_of(shape, 1, head)
        checkpoint.save_params(path / stage / "params", params)
        files.write_json(path / stage / "done.json", {"seconds": 1.0})
    files.write_json(path / "config.json", shapes.filled(config).to_dict())
    files.write_json(path / "overrides.json", {})
    tokenizer().save(path / "tokenizer.json")
    return path


def stage_params(workdir, head):
    shape = run_lib.model_shape(toy.get_config(), tokenizer().vocab_size, "cpu")
    return shape, tiny.params_of(shape, 1, head)


def test_a_policy_goes_out_with_its_tokenizer(workdir, tmp_path):
    assert command.main(["export", str(workdir / "sft"), str(tmp_path / "out")]) == 0
    shape, params = stage_params(workdir, "lm")
    assert hf.canonical(hf.load_config(tmp_path / "out")) == hf.canonical(shape)
    ours = jax.tree.map(lambda x: x[: shape.vocab_size] if len(x) == shape.padded_vocab else x, params)
    read = hf.load_params(tmp_path / "out", hf.load_config(tmp_path / "out", vocab_multiple=1))
    jax.tree.map(np.testing.assert_array_equal, read, ours)
    torch, transformers = torch_and_transformers()
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs("the cat sat", add_special_tokens=False).input_ids == tokenizer().encode("the cat sat")
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer().eos_id, tokenizer().pad_id)
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    tokens = np.arange(2, 20, dtype=np.int32)[None]
    with torch.no_grad():
        logits = network(torch.from_numpy(tokens).long()).logits.numpy()
    expected = model.lm_logits(shape, params, model.masked_hidden_states(shape, params, tokens, tokens > 0))
    np.testing.assert_allclose(logits, expected[..., : shape.vocab_size], atol=1e-4)


def test_a_reward_model_goes_out_with_its_bias(workdir, tmp_path):
    assert command.main(["export", str(workdir / "reward_model"), str(tmp_path / "out")]) == 0
    shape, params = stage_params(workdir, "scalar")
    assert hf.head_of(tmp_path / "out") == "scalar"
    assert scores_of(tmp_path / "out") == pytest.approx(own_scores(shape, params), abs=1e-4)


TEXTS = ("the cat sat on the mat .", "the dog", "a cat . the mat ! the cat", "")


def scores_of(folder, change=lambda tokenizer, network: None):
    """f32[B] of transformers, for TEXTS that end with EOS, in a batch that its tokenizer pads."""
    torch, transformers = torch_and_transformers()
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    network = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    change(theirs, network)
    batch = theirs([text + theirs.eos_token for text in TEXTS], padding=True, return_tensors="pt")
    assert not batch.attention_mask.all()
    with torch.no_grad():
        return network(batch.input_ids, attention_mask=batch.attention_mask).logits[:, 0].numpy()


def own_scores(shape, params):
    """f32[B]: of the same texts."""
    rows = [[*tokenizer().encode(text), tokenizer().eos_id] for text in TEXTS]
    tokens, mask = pad_right(rows, max(map(len, rows)), 0)
    return np.asarray(jax.jit(ppo.sequence_scores, static_argnums=0)(shape, params, tokens, mask))


def test_a_tokenizer_that_is_not_that_of_the_run_goes_not_out(workdir, tmp_path, capsys):
    kept = {name: checksum(workdir / name) for name in notes.KEPT if (workdir / name).is_file()}
    (workdir / "data_report.json").write_text(json.dumps({"kept": kept}))
    assert command.main(["export", str(workdir / "sft"), str(tmp_path / "good")]) == 0
    (workdir / "tokenizer.json").write_text((workdir / "tokenizer.json").read_text() + " ")
    assert command.main(["export", str(workdir / "sft"), str(tmp_path / "out")]) == 2
    assert "(tokenizer.json was changed): put back" in capsys.readouterr().err and not (tmp_path / "out").exists()


def without_pad(workdir, **changes):
    """Replaces the run's padding token by one that no name marks as such, so that padding is EOS."""
    spec = json.loads((workdir / "tokenizer.json").read_text().replace('"<pad>"', '"<other>"'))
    spec["added_tokens"][0] |= changes
    (workdir / "tokenizer.json").write_text(json.dumps(spec))
    assert Tokenizer.load(workdir / "tokenizer.json").pad_id == tokenizer().eos_id


def test_where_padding_is_eos_a_spare_special_token_becomes_the_padding(workdir, tmp_path, capsys):
    """transformers would else read the score before the EOS. It pads on the right, even if the run's tokenizer did not."""
    without_pad(workdir)
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left"}
    names = {"eos_token": "<eos>", "pad_token": "<eos>"}
    (workdir / "tokenizer_config.json").write_text(json.dumps(described | names))
    (workdir / "special_tokens_map.json").write_text(json.dumps(names))
    assert command.main(["export", str(workdir / "reward_model"), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.endswith(" parameters\n")
    assert scores_of(tmp_path / "out") == pytest.approx(own_scores(*stage_params(workdir, "scalar")), abs=1e-4)
    # The ids of texts stay, so that a run of this tokenizer can use the model.
    assert (tmp_path / "out" / "tokenizer.json").read_text() == (workdir / "tokenizer.json").read_text()


def test_where_no_token_is_left_for_padding_the_command_says_how_to_add_one(workdir, tmp_path, capsys):
    without_pad(workdir, special=False)
    assert command.main(["export", str(workdir / "reward_model"), str(tmp_path / "out")]) == 0
    assert "no token is left for padding, so transformers scores one row at a time" in capsys.readouterr().out
    with pytest.raises(ValueError, match="batch sizes > 1"):
        scores_of(tmp_path / "out")

    def as_said(theirs, network):
        theirs.add_special_tokens({"pad_token": "<|pad|>"})
        network.resize_token_embeddings(len(theirs))
        network.config.pad_token_id = theirs.pad_token_id

    expected = own_scores(*stage_params(workdir, "scalar"))
    assert scores_of(tmp_path / "out", as_said) == pytest.approx(expected, abs=1e-4)


def test_a_reward_model_of_chats_is_read_at_the_end_of_a_turn(workdir, tmp_path, capsys):
    """The token that ends documents may then be padding, and needs no other in its place."""
    (workdir / "tokenizer.json").write_text((workdir / "tokenizer.json").read_text().replace('"<pad>"', '"<turn_end>"'))
    turn = "{% for turn in messages %}{{ turn.role + ': ' + turn.content + '<turn_end>' }}{% endfor %}"
    reply = "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    (workdir / "chat_template.jinja").write_text(turn + reply)
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["template"] = "chat"
    (workdir / "config.json").write_text(json.dumps(config))
    assert command.main(["export", str(workdir / "reward_model"), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.endswith(" parameters\n")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (settings["eos_token_id"], settings["pad_token_id"]) == (0, tokenizer().eos_id)


@pytest.mark.parametrize("ends", [5, [4, 5]])
def test_a_released_reward_model_whose_padding_ends_a_text_is_said(workdir, tmp_path, capsys, ends):
    assert command.main(["export", str(workdir / "reward_model"), str(tmp_path / "in")]) == 0
    settings = json.loads((tmp_path / "in" / "config.json").read_text())
    (tmp_path / "in" / "config.json").write_text(json.dumps(settings | {"pad_token_id": 5, "eos_token_id": ends}))
    assert capsys.readouterr().out.endswith(" parameters\n")
    assert command.main(["import", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert "its padding token ends a text too" in capsys.readouterr().out


@pytest.mark.parametrize(
    "source, sentence",
    [
        ("", "/run is a work directory; give one of its stages: "),
        ("collect", "is not a finished stage: it has no done.json"),
        ("rewardmodel", "whose stages are pretrain, sft, collect, reward_model; did you mean reward_model?"),
    ],
)
def test_what_is_no_stage_is_said(workdir, tmp_path, capsys, source, sentence):
    assert command.main(["export", str(workdir / source), str(tmp_path / "out")]) == 2
    assert sentence in capsys.readouterr().err and written_nothing(tmp_path / "out")


@pytest.mark.parametrize("text", ["{}", "[]", '{"stages": ["sft"], "sft": 3}'])
def test_a_damaged_config_is_a_sentence(workdir, tmp_path, capsys, text):
    (workdir / "config.json").write_text(text)
    assert command.main(["export", str(workdir / "sft"), str(tmp_path / "out")]) == 2
    assert "config.json" in capsys.readouterr().err and written_nothing(tmp_path / "out")


# ---------------------------------------------------------------------------- folders in a run


@pytest.fixture
def run(workdir, tmp_path):
    """A run whose config names released models in tmp_path, with a tokenizer and no data."""
    for stage in ("sft", "reward_model"):
        assert command.main(["export", str(workdir / stage), str(tmp_path / f"released_{stage}")]) == 0
    config = toy.get_config()
    config.data.files.dir = str(tmp_path)
    config.model.update(shape="released_sft", num_layers=None, embed_dim=None, num_heads=None, max_length=None)
    config.sft.init = "released_sft"
    config.reward_model.init = "released_reward_model"
    config.ppo.reward = "released_reward_model"
    run = run_lib.without_data(config, tokenizer(), sharding.make_mesh(2, 2, 2))
    run.path = workdir
    return run


def test_what_the_tokenizer_has_not_is_masked_in_every_model_of_a_run(run, workdir):
    run.config.model.vocab_size = tokenizer().vocab_size + 70  # as a released vocabulary is padded
    config = run.config.copy_and_resolve_references()
    found = run_lib.without_data(config, tokenizer(), sharding.make_mesh(2, 2, 2))
    assert (
        found.model.absent_ids
        == found.shape("reward_model").absent_ids
        == ((tokenizer().vocab_size, config.model.vocab_size),)
    )
    assert run.model.absent_ids == () and hf.canonical(found.model).absent_ids == ()


def test_a_stage_starts_from_a_released_model(run, workdir):
    shape, params = stage_params(workdir, "lm")
    assert hf.canonical(run.model) == hf.canonical(shape)
    jax.tree.map(np.testing.assert_array_equal, weights.start_params(run, "sft"), zeroed(params, shape))
    with pytest.raises(InputError, match="released_reward_model is a reward model; a language model is needed here"):
        run.config.sft.init = "released_reward_model"
        weights.start_params(run, "sft")
    with pytest.raises(
        InputError, match="released_sft does not fit .*: num_layers=1, not 2; model.shape=released_sft takes"
    ):
        run.model = dataclasses.replace(run.model, num_layers=2)
        run.config.sft.init = "released_sft"
        weights.start_params(run, "sft")


def test_a_released_reward_model_starts_one_and_is_one(run, workdir):
    shape, params = stage_params(workdir, "scalar")
    jax.tree.map(np.testing.assert_array_equal, weights.start_params(run, "reward_model"), zeroed(params, shape))
    assert hf.canonical(run.shape("released_reward_model")) == hf.canonical(shape)
    jax.tree.map(
        np.testing.assert_array_equal,
        weights.load_params(run, "released_reward_model", "scalar"),
        zeroed(params, shape),
    )


def test_a_name_that_is_nothing_is_said(run):
    weights.check_sources(run, "ppo")
    run.config.sft.init = run.config.ppo.reward = "reward_modle"
    for use in (
        lambda: weights.start_params(run, "sft"),
        lambda: weights.check_sources(run, "sft"),
        lambda: weights.check_sources(run, "ppo"),
    ):
        with pytest.raises(
            InputError,
            match="sft.init and ppo.reward name 'reward_modle', which is neither a stage of this config, nor a folder of released",
        ):
            use()


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.json and merges.txt"])
def test_the_same_tokens_with_other_ids_are_refused(run, tmp_path, files):
    folder = tmp_path / "released_reward_model"
    theirs = json.loads((folder / "tokenizer.json").read_text())
    vocab = theirs["model"]["vocab"]
    if files != "tokenizer.json":  # what belongs to the run, and then not
        (folder / "tokenizer.json").unlink()
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in theirs["model"]["merges"]]
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
        (folder / "vocab.json").write_text(json.dumps(vocab))
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
        weights.check_sources(run, "ppo")
    first, second = [text for text in vocab if vocab[text] in (100, 101)]
    vocab |= {first: vocab[second], second: vocab[first]}
    path = folder / files.partition(" and ")[0]
    path.write_text(json.dumps(theirs if files == "tokenizer.json" else vocab))
    with pytest.raises(
        InputError, match="released_reward_model reads other tokens than this run, or gives them other ids"
    ):
        weights.check_sources(run, "ppo")


def test_a_reward_model_of_other_tokens_is_refused(run, tmp_path):
    Tokenizer.train(["quite another text than before"], 270).save(tmp_path / "released_reward_model" / "tokenizer.json")
    with pytest.raises(InputError, match="released_reward_model reads other tokens than this run"):
        weights.load_params(run, "released_reward_model", "scalar")


def zeroed(params, shape):
    """The rows that pad the vocabulary are not released."""
    return {
        name: np.where(np.arange(len(x))[:, None] < shape.vocab_size, x, 0) if name == "embedding" else x
        for name, x in params.items()
    }
