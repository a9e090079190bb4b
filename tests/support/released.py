"""Model folders as they are released, of the smallest size that can still go wrong: by transformers, or without it."""

import json

import numpy as np
import pytest
import safetensors.numpy

VOCAB, LENGTH = 70, 32
_COMMON = dict(
    num_hidden_layers=3,
    hidden_size=32,
    num_attention_heads=4,
    intermediate_size=40,
    vocab_size=VOCAB,
    max_position_embeddings=LENGTH,
)
_GROUPED = _COMMON | dict(num_key_value_heads=2)
_NEOX = _COMMON
_LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8
)
# name -> transformers' model_type and settings.
MODELS = {
    "gpt2": ("gpt2", dict(n_layer=3, n_embd=32, n_head=4, n_inner=40, vocab_size=VOCAB, n_positions=LENGTH)),
    "opt": (
        "opt",
        dict(
            num_hidden_layers=3,
            hidden_size=32,
            num_attention_heads=4,
            ffn_dim=40,
            vocab_size=VOCAB,
            word_embed_proj_dim=32,
            max_position_embeddings=LENGTH,
        ),
    ),
    "pythia": ("gpt_neox", _NEOX),
    "gpt_neox": ("gpt_neox", _NEOX | dict(use_parallel_residual=False, rotary_pct=1.0, hidden_act="gelu_new")),
    "llama": ("llama", _GROUPED | dict(rope_theta=500.0, tie_word_embeddings=True)),
    "llama3": ("llama", _GROUPED | dict(rope_scaling=_LLAMA3, head_dim=12)),
    "mistral": ("mistral", _GROUPED | dict(sliding_window=20)),
    "qwen2": ("qwen2", _GROUPED),
    "qwen3": ("qwen3", _GROUPED | dict(head_dim=12, tie_word_embeddings=True)),
    "gemma": ("gemma", _GROUPED | dict(head_dim=12)),
}


def torch_and_transformers():
    torch = pytest.importorskip("torch", reason="torch is not installed: bash launch/test.sh --torch")
    import transformers

    torch.set_num_threads(1)  # more wait for each other, in models so small
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return torch, transformers


def save_with_transformers(folder, name, *, dtype="float32", head="lm", std=0.3, **settings):
    """A random model of MODELS; no scale is 1 and no bias 0, as in released ones."""
    torch, transformers = torch_and_transformers()
    model_type, values = MODELS[name]
    tokens = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    config = transformers.AutoConfig.for_model(model_type, **values | tokens | settings)
    torch.manual_seed(0)
    if head == "scalar":
        config.num_labels = 1
        network = transformers.AutoModelForSequenceClassification.from_config(config)
    else:
        network = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=std)
    network.tie_weights()
    network.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def their_logits(folder, tokens):
    """Of a language model f32[B, T, V]; of a reward model f32[B], at the last token."""
    torch, transformers = torch_and_transformers()
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    network = getattr(transformers, architecture).from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = network(torch.from_numpy(np.asarray(tokens)).long()).logits.numpy()
    return logits[:, 0] if architecture.endswith("ForSequenceClassification") else logits


LLAMA = dict(
    model_type="llama",
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    vocab_size=VOCAB,
    max_position_embeddings=LENGTH,
    rms_norm_eps=1e-5,
    rope_theta=500.0,
    hidden_act="silu",
    attention_bias=False,
    mlp_bias=False,
    tie_word_embeddings=True,
)


def save_llama(folder):
    """A random Llama, made without torch."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    width, mlp, kv = LLAMA["hidden_size"], LLAMA["intermediate_size"], 8
    shapes = {"model.embed_tokens.weight": (VOCAB, width), "model.norm.weight": (width,)}
    for layer in range(3):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + name: shape
            for name, shape in {
                "input_layernorm.weight": (width,),
                "post_attention_layernorm.weight": (width,),
                "self_attn.q_proj.weight": (width, width),
                "self_attn.o_proj.weight": (width, width),
                "self_attn.k_proj.weight": (kv, width),
                "self_attn.v_proj.weight": (kv, width),
                "mlp.gate_proj.weight": (mlp, width),
                "mlp.up_proj.weight": (mlp, width),
                "mlp.down_proj.weight": (width, mlp),
            }.items()
        }
    rng = np.random.default_rng(0)
    write_tensors(folder, {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})
    return folder


def read_tensors(folder):
    return safetensors.numpy.load_file(folder / "model.safetensors")


def write_tensors(folder, tensors):
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
