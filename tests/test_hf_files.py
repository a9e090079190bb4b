"""Model folders that are not right: one clear sentence, nothing written; and how much of a good one is read."""

import dataclasses
import json
import os
import pickle
import re
import socket
import struct
import subprocess
import sys
import tracemalloc

import jax
import numpy as np
import pytest
import tiny
from released import LLAMA, read_tensors, save_llama, write_tensors

from rlhf_jax import hf, model, sharding
from rlhf_jax.hf import tensors as tensors_lib
from rlhf_jax.runtime.errors import InputError


@pytest.fixture
def folder(tmp_path):
    return save_llama(tmp_path)


def load(folder):
    return hf.load_params(folder, hf.load_config(folder))


def test_params_have_the_layout_of_init_params(folder):
    config = hf.load_config(folder, scan_layers=False)
    assert not config.scan_layers
    params, ours = hf.load_params(folder, config), model.param_shapes(config)
    assert jax.tree.map(lambda p: (p.shape, p.dtype), params) == jax.tree.map(lambda p: (p.shape, p.dtype), ours)


def test_rope_theta_is_read_from_both_places(folder):
    settings = {key: value for key, value in LLAMA.items() if key != "rope_theta"}
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": 777.0}
    assert hf.load_config(folder).rope_theta == 500.0
    (folder / "config.json").write_text(json.dumps(settings))
    assert hf.load_config(folder).rope_theta == 777.0


def test_files_of_the_bare_trunk_lack_the_prefix(folder):
    """GPT-2's on the hub are such."""
    whole = load(folder)
    write_tensors(folder, {name.removeprefix("model."): x for name, x in read_tensors(folder).items()})
    jax.tree.map(np.testing.assert_array_equal, load(folder), whole)


# ---------------------------------------------------------------------------- config.json


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            dict(model_type="mamba"),
            "config.json: model_type 'mamba' is unknown; it can be gpt2, opt, gpt_neox, llama, mistral",
        ),
        (dict(model_type=["llama"]), "config.json: model_type ['llama'] is unknown"),
        (dict(hidden_act="gelu"), "config.json: 'hidden_act' = 'gelu' is not supported; it can be 'silu'"),
        (dict(hidden_act=["silu"]), "config.json: 'hidden_act' = ['silu'] is not supported"),
        (dict(attention_bias=True), "config.json: 'attention_bias' = True is not supported"),
        (dict(rope_scaling={"type": "linear"}), "'rope_scaling.rope_type' = 'linear' is not supported"),
        (dict(rope_parameters={"rope_type": "yarn"}), "'rope_scaling.rope_type' = 'yarn' is not supported"),
        (dict(rope_scaling={"rope_type": "llama3", "factor": 8}), "'rope_scaling.low_freq_factor' is None"),
        (dict(rope_scaling=8), "config.json: 'rope_scaling' is 8; it must be an object"),
        (dict(rope_theta=0), "config.json: 'rope_theta' is 0; it must be a positive number"),
        (dict(vocab_size=None), "config.json: 'vocab_size' is None; it must be a positive number"),
        (dict(num_hidden_layers=-1), "config.json: 'num_hidden_layers' is -1"),
        (dict(num_hidden_layers=2.5), "config.json: 'num_hidden_layers' is 2.5; it must be a whole number"),
        (dict(num_attention_heads=5), "model.num_heads=5 must divide embed_dim=24"),
        (dict(quantization_config={"bits": 4}), "config.json: 'quantization_config' = {'bits': 4} is not supported"),
        (dict(model_type="opt", do_layer_norm_before=False), "can be True (opt-350m is the one such OPT"),
    ],
    ids=str,
)
def test_a_config_that_we_cannot_follow_is_named(folder, changes, sentence):
    (folder / "config.json").write_text(json.dumps(LLAMA | changes))
    with pytest.raises(InputError, match=re.escape(sentence)):
        hf.load_config(folder)


@pytest.mark.parametrize(
    "layers, sentence",
    [
        (10**9, "config.json: the model has 1000000000 layers, but its files have only 29 tensors"),
        (10**12, "config.json: 'num_hidden_layers' is 1000000000000; it must be at most 1,000,000,000"),
    ],
)
def test_more_layers_than_tensors_are_refused_at_once(folder, layers, sentence):
    (folder / "config.json").write_text(json.dumps(LLAMA | {"num_hidden_layers": layers}))
    with pytest.raises(InputError, match=sentence):
        load(folder)


NONSENSE = [
    0,
    -1,
    0.5,
    float("nan"),
    float("inf"),
    10**400,
    -(10**400),
    1e300,
    2**31 - 1,
    2**31,
    "a",
    "",
    [],
    [1],
    [["a"]],
    {},
    {"a": 1},
    None,
    True,
    False,
]


@pytest.mark.parametrize("model_type", hf.families.FAMILIES)
def test_no_value_of_any_setting_is_more_than_a_sentence(tmp_path, model_type):
    """Of the type and of the range: what is refused names the file, what is accepted has the shapes that it says."""
    family = hf.families.FAMILIES[model_type]
    gated = {"llama": "swiglu", "mistral": "swiglu", "qwen2": "swiglu", "qwen3": "swiglu", "gemma": "geglu"}
    shape = model.TransformerConfig(
        vocab_size=61,
        num_layers=2,
        embed_dim=24,
        num_heads=4,
        max_length=48,
        mlp=gated.get(model_type, "gelu"),
        **family.fields,
    )
    whole = {"model_type": model_type, **family.to_json(shape)}
    others = (
        "architectures",
        "id2label",
        "num_labels",
        "rope_scaling",
        "rope_parameters",
        "sliding_window",
        "quantization_config",
    )
    rope = {
        "rope_type": "llama3",
        "factor": 8,
        "low_freq_factor": 1,
        "high_freq_factor": 4,
        "original_max_position_embeddings": 32,
    }
    changes = [{name: value} for name in {*whole, *others} for value in NONSENSE]
    changes += [{"rope_scaling": rope | {name: value}} for name in (*rope, "rope_theta", "type") for value in NONSENSE]
    refused = 0
    classifier = {"architectures": [family.classes[1]]}
    for change in changes:
        (tmp_path / "config.json").write_text(json.dumps(whole | classifier | change))
        for read in (hf.load_config, hf.head_of):
            try:
                read(tmp_path)
            except InputError as error:
                refused += 1
                assert "config.json" in str(error) and len(str(error)) < 400 and "\n" not in str(error), change
    assert refused > 100


def test_a_vocabulary_and_a_context_beyond_reason_are_refused_before_anything_is_made(folder):
    for change, sentence in {
        "vocab_size": r"tensor 'model.embed_tokens.weight' is \[70, 24\]; by config.json it must be \[1000000000, 24\]",
        "hidden_size": "tensor '.*' is .*; by config.json it must be",
    }.items():
        (folder / "config.json").write_text(
            json.dumps(LLAMA | {change: 10**9 if change == "vocab_size" else 2**20, "head_dim": 6})
        )
        with pytest.raises(InputError, match=sentence):
            load(folder)
    (folder / "config.json").write_text(json.dumps(LLAMA | {"max_position_embeddings": 2**31}))
    with pytest.raises(InputError, match="'max_position_embeddings' is 2147483648; it must be at most 1,000,000,000"):
        load(folder)


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"]
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_finite_number_is_named(folder, tmp_path, name, value):
    tensors = read_tensors(folder)
    tensors[name] = tensors[name].copy()
    tensors[name].flat[3] = value
    write_tensors(folder, tensors)
    sentence = rf"model\.safetensors: tensor '{re.escape(name)}' has values that are not finite numbers"
    with pytest.raises(InputError, match=sentence):
        load(folder)
    (tmp_path / "copy").mkdir()
    with pytest.raises(InputError, match=sentence):
        hf.copy(folder, tmp_path / "copy")


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000])
def test_a_broken_config_json_is_named(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json .*Hugging Face model folder"):
        hf.load_config(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere/config\.json cannot be read"):
        hf.load_config(tmp_path / "nowhere")


# ---------------------------------------------------------------------------- tensors


def test_a_missing_tensor_is_named(folder):
    tensors = read_tensors(folder)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    write_tensors(folder, tensors)
    with pytest.raises(InputError, match=r"'model\.layers\.1\.mlp\.up_proj\.weight' is missing"):
        load(folder)


def test_an_extra_tensor_is_named_but_rotary_frequencies_are_no_parameters(folder):
    tensors = read_tensors(folder) | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}
    write_tensors(folder, tensors)
    load(folder)
    write_tensors(folder, tensors | {"model.layers.3.mlp.up_proj.weight": np.ones((40, 24), np.float32)})
    with pytest.raises(InputError, match=r"'model\.layers\.3\.mlp\.up_proj\.weight' is unexpected"):
        load(folder)


@pytest.mark.parametrize("name", ["model.layers.2.self_attn.k_proj.weight", "model.embed_tokens.weight"])
def test_a_misshapen_tensor_is_named(folder, name):
    tensors = read_tensors(folder)
    tensors[name] = np.ascontiguousarray(tensors[name].T)
    write_tensors(folder, tensors)
    with pytest.raises(InputError, match=rf"'{re.escape(name)}' is \[24, \d+\]; by config.json it must be \[\d+, 24\]"):
        load(folder)


def test_a_tensor_of_integers_is_refused(folder):
    write_tensors(folder, read_tensors(folder) | {"model.norm.weight": np.ones(24, np.int64)})
    with pytest.raises(InputError, match="tensor 'model.norm.weight' is I64; it can be F32, F16, BF16"):
        load(folder)


# ---------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_a_pickle_is_not_read(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps({"model.norm.weight": [1.0]}))
    with pytest.raises(InputError, match=rf"only {re.escape(name)}, a pickle.*convert it.*save_pretrained"):
        load(folder)


def test_an_empty_folder_is_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="model.safetensors is missing, and model.safetensors.index.json too"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -100, -1])
def test_a_cut_file_is_named(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read .* must be a whole safetensors file"):
        load(folder)


def lie(header, about):
    entry = header["model.norm.weight"]
    if about == "offsets beyond the file":
        entry["data_offsets"] = [10**9, 10**9 + 96]
    elif about == "overlapping offsets":
        entry["data_offsets"] = header["model.layers.0.input_layernorm.weight"]["data_offsets"]
    elif about == "negative offsets":
        entry["data_offsets"] = [-96, 0]
    elif about == "a larger shape":
        entry["shape"] = [1 << 40]
    elif about == "a negative shape":
        entry["shape"] = [-24]
    elif about == "another type":
        entry["dtype"] = "F16"
    elif about == "no offsets":
        del entry["data_offsets"]
    elif about == "a number":
        header["model.norm.weight"] = 5
    return header


@pytest.mark.parametrize(
    "about",
    [
        "offsets beyond the file",
        "overlapping offsets",
        "negative offsets",
        "a larger shape",
        "a negative shape",
        "another type",
        "no offsets",
        "a number",
    ],
)
def test_a_header_that_lies_is_refused(folder, about):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.dumps(lie(json.loads(data[8 : 8 + length]), about)).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read .* must be a whole safetensors file"):
        load(folder)


def test_a_header_of_any_length_is_read(folder):
    """The tensors then do not lie at multiples of their type's size."""
    whole, path = load(folder), folder / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = data[8 : 8 + length].rstrip() + b" " * (1 - len(data[8 : 8 + length].rstrip()) % 2)
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])
    assert len(header) % 2 == 1
    jax.tree.map(np.testing.assert_array_equal, load(folder), whole)


@pytest.mark.parametrize("length", [1 << 63, 1 << 40, 10**8 + 1])
def test_a_header_of_an_impossible_length_is_refused_at_once(folder, length):
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        load(folder)


@pytest.fixture
def sharded(folder):
    """Two files and their index."""
    tensors = read_tensors(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"a.safetensors": names[:10], "b.safetensors": names[10:]}
    for file, half in halves.items():
        write_tensors(folder, {name: tensors[name] for name in half})
        (folder / "model.safetensors").rename(folder / file)
    write_index(folder, {name: file for file, half in halves.items() for name in half})
    return folder


def write_index(folder, places):
    (folder / tensors_lib.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def places_of(folder):
    return json.loads((folder / tensors_lib.INDEX).read_text())["weight_map"]


@pytest.mark.parametrize(
    "file",
    [
        "../a.safetensors",
        "/etc/passwd",
        "sub/a.safetensors",
        "..",
        "a.safetensors/../../b.safetensors",
        "..\\a.safetensors",
        "a.bin",
        "",
    ],
)
def test_a_path_outside_the_folder_is_refused(sharded, file):
    write_index(sharded, places_of(sharded) | {"model.norm.weight": file})
    with pytest.raises(InputError, match="must be the name of a safetensors file in this folder"):
        load(sharded)


def test_an_index_that_is_not_true_is_refused(sharded):
    jax.tree.map(np.testing.assert_array_equal, load(sharded), load(save_llama(sharded.parent / f"{sharded.name}2")))
    places = places_of(sharded)
    write_index(sharded, places | {"model.norm.weight": "c.safetensors"})
    with pytest.raises(InputError, match="index.json names c.safetensors, which is missing"):
        load(sharded)
    write_index(sharded, places | {"model.norm.weight": places["model.embed_tokens.weight"]})
    with pytest.raises(InputError, match="tensor 'model.norm.weight' is not in a.safetensors"):
        load(sharded)
    for text in ("[]", '{"weight_map": 5}', '{"weight_map": {"a": 5}}'):
        (sharded / tensors_lib.INDEX).write_text(text)
        with pytest.raises(
            InputError, match="is not a JSON object|'weight_map' must be an object of tensor names and file names"
        ):
            load(sharded)


def test_a_tensor_in_two_files_is_refused(sharded):
    (sharded / "a.safetensors").write_bytes((sharded / "b.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"b\.safetensors: tensor '.*' is in a\.safetensors too"):
        load(sharded)


# ---------------------------------------------------------------------------- how much is read


def test_a_part_of_a_tensor_is_read_without_the_rest(tmp_path):
    """One eighth of 1/64 of a file of 64 GiB (a hole, so that the disk does not need to hold it)."""
    shape, part = (1 << 17, 1 << 17), (slice(0, 1 << 10), slice(0, 1 << 14))
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 1 << 36]}}).encode()
    with open(tmp_path / tensors_lib.SINGLE, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + (1 << 36))
    tracemalloc.start()
    block = np.array(tensors_lib.find(tmp_path)["w"].open()[part])
    assert tracemalloc.get_traced_memory()[1] < 1.1 * block.nbytes
    tracemalloc.stop()
    assert block.nbytes == 1 << 26


PROCESS = """
import re, sys
import jax
folder, port, process = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(process))
from rlhf_jax import hf, model, sharding
config, mesh = hf.load_config(folder), sharding.make_mesh()
places = sharding.param_shardings(model.logical_axes(config), model.param_shapes(config), mesh)
memory = lambda name: int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
jax.block_until_ready(jax.device_put(jax.numpy.ones(3)))
before = memory("VmRSS")
params = jax.block_until_ready(hf.load_params(folder, config, places))
print("grown", memory("VmHWM") - before)
print("mine", sum(shard.data.nbytes for x in jax.tree.leaves(params) for shard in x.addressable_shards))
print("largest", max(shard.data.nbytes for x in jax.tree.leaves(params) for shard in x.addressable_shards))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_each_of_two_processes_holds_its_half_and_one_part_more(tmp_path):
    """The peak of each process, beside the arrays themselves: the part of one parameter, not the model."""
    config = dataclasses.replace(tiny.llama(), vocab_size=8000, embed_dim=512, mlp_dim=4096, num_layers=6, num_heads=8)
    hf.save(tmp_path, config, tiny.params_of(config, 0), dtype="bfloat16")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROCESS, str(tmp_path), port]

    def start(i):
        return subprocess.Popen([*command, str(i)], env=environment, stdout=subprocess.PIPE, text=True)

    for process in [start(0), start(1)]:
        found = dict(line.split() for line in process.communicate(timeout=300)[0].splitlines())
        grown, mine, largest = (int(found[name]) for name in ("grown", "mine", "largest"))
        whole = sum(x.size for x in jax.tree.leaves(model.param_shapes(config))) * 4
        assert mine < 0.51 * whole and grown < mine + largest + 40e6 < whole, (grown, mine, largest, whole)


def test_parts_are_read_one_at_a_time(tmp_path, monkeypatch):
    """On eight devices: the host holds one part of one parameter, and reads a part once where several devices have it."""
    config = dataclasses.replace(tiny.llama(), mlp_dim=8192, num_layers=4)
    hf.save(tmp_path, config, tiny.params_of(config, 0))
    largest = 4 * 32 * 8192 * 4  # bytes of the stacked w_up
    reads = []
    parameter = hf._Reader.parameter

    def counted(self, keys, shape):
        read = parameter(self, keys, shape)

        def one(index):
            block = read(index)
            reads.append((keys[-1].key, block.nbytes))
            return block

        return one

    monkeypatch.setattr(hf._Reader, "parameter", counted)
    monkeypatch.setattr(jax, "device_put", lambda block, device: (block.shape, device))
    monkeypatch.setattr(jax, "block_until_ready", lambda arrays: arrays)
    monkeypatch.setattr(jax, "make_array_from_single_device_arrays", lambda shape, sharding, arrays: len(arrays))
    places = sharding.param_shardings(model.logical_axes(config), model.param_shapes(config), tiny.mesh_of("2x2x2"))
    tracemalloc.start()
    counts = hf.load_params(tmp_path, config, places)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert set(jax.tree.leaves(counts)) == {8}
    assert [size for name, size in reads if name == "w_up"] == [largest // 4] * 4  # over fsdp and tensor, not over data
    assert peak < 1.5 * (largest // 4)
