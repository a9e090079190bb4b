"""Every field of a run with its default: the paper's value where the paper has one.

Experiments start from `default_config()` and change what they need. Where InstructGPT is silent
(paper section unstated), the comment gives the reason for the default. Coefficients are array
arguments of the programs; lengths, sizes and flags shape them.
"""

from ml_collections import ConfigDict, config_dict


def default_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.stages = ("pretrain", "sft", "collect", "reward_model", "ppo", "ppo_ptx")
    config.prompt_length = 1024  # tokens; App. C: prompts over 1k tokens are dropped
    config.completion_length = 1024  # tokens; App. C: responses are capped at 1k
    config.too_long = "drop"  # what has a prompt over prompt_length; or "cut_left": the prompt loses its beginning (not BOS)
    config.checkpoints_kept = 2  # the newest of each stage
    config.checkpoints_every = 0  # and those of every so many steps (iterations of PPO), for good; 0: none
    config.tensorboard = False
    config.platform = ""  # "cpu", "gpu", "tpu"; empty: what JAX finds

    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
    config.sharding = ConfigDict(  # logical axis -> mesh axes, comma-separated; empty: not sharded
        {
            "batch": "data,fsdp",
            "seq": "",
            "layers": "",
            "vocab": "tensor",
            "embed": "fsdp",
            "mlp": "tensor",
            "heads": "tensor",
            "kv_heads": "tensor",
            "head_dim": "",
        }
    )
    config.model = ConfigDict(  # see model.TransformerConfig
        {
            # GPT-3's, gpt3_125m to gpt3_175b (shapes.py), or a folder of released weights (relative to data.files.dir):
            # what the fields down to norm_eps are where they are None.
            "shape": "gpt3_1.3b",
            "vocab_size": config_dict.placeholder(int),  # of the folder, else the tokenizer's
            "num_layers": config_dict.placeholder(int),
            "embed_dim": config_dict.placeholder(int),
            "num_heads": config_dict.placeholder(int),
            "num_kv_heads": config_dict.placeholder(int),
            "head_size": config_dict.placeholder(int),
            "mlp_dim": config_dict.placeholder(int),
            "max_length": config_dict.placeholder(int),
            "positions": config_dict.placeholder(str),
            "position_offset": config_dict.placeholder(int),
            "norm": config_dict.placeholder(str),
            "mlp": config_dict.placeholder(str),
            "use_bias": config_dict.placeholder(bool),
            "qkv_bias": config_dict.placeholder(bool),
            "qk_norm": config_dict.placeholder(bool),
            "parallel_residual": config_dict.placeholder(bool),
            "embedding_scale": config_dict.placeholder(bool),
            "tie_embeddings": config_dict.placeholder(bool),
            "rope_theta": config_dict.placeholder(float),
            "rotary_fraction": config_dict.placeholder(float),
            "rope_scaling": config_dict.placeholder(tuple),
            "norm_eps": config_dict.placeholder(float),
            "init_std": 0.02,
            "vocab_multiple": 128,
            "dtype": "bfloat16",  # the paper computes in fp16 with fp32 master weights
            "scan_layers": True,
            "remat": "full",
            "attention": "auto",  # splash on TPU, cuDNN on GPU (bfloat16), xla elsewhere; "blocked" is good on a CPU
            "sequence_axis": "",  # "tensor": activations between layers are split along time too, to save memory
            "logits_chunk": 512,  # places of a row whose logits exist at once; 0: all
        }
    )
    # A path (of a tokenizer.json or its directory) is relative to data.files.dir; without one, the tokenizer is trained
    # on the corpus.
    config.tokenizer = ConfigDict({"path": "", "vocab_size": 1024})
    config.data = data_config()
    config.pretrain = pretrain_config()
    config.sft = sft_config()
    config.collect = collect_config()
    config.reward_model = reward_model_config()
    config.ppo = ppo_config()
    config.ppo_ptx = ppo_config()
    config.ppo_ptx.ptx_coef = 27.8  # C.4
    config.dpo = dpo_config()  # comparators: in config.stages where they are wanted
    config.best_of_n = best_of_n_config()
    config.prompted = prompted_config()
    config.evaluate = ConfigDict(
        {
            "prompts": 256,
            "batch_size": 64,
            "temperature": 1.0,  # as in rollouts
            "skill_items": 100,
            "skill_prompt_length": 96,
            "skill_completion_length": 12,
            "bootstrap": 1000,  # resamples
            "document_rows": 1024,  # of held-out text at most, evenly spaced; 0: all there is
        }
    )
    return config


def defaults_like(config: ConfigDict) -> ConfigDict:
    """The defaults of a config that may have stages of other names than the default one."""
    defaults, of_kind = default_config(), {}
    for section in defaults.values():
        if isinstance(section, ConfigDict) and "kind" in section:
            of_kind.setdefault(section.kind, section)
    for stage in config.stages:
        if stage not in defaults and config[stage].get("kind") in of_kind:
            defaults[stage] = of_kind[config[stage].kind]
    return defaults


def upgraded(config: dict) -> dict:
    """A config.json of an older version with the values that today's fields would have."""
    for section in config.values():
        if isinstance(section, dict) and isinstance(section.get("whiten_advantages"), bool):
            section["whiten_advantages"] = "batch" if section["whiten_advantages"] else "none"
    return config


def data_config() -> ConfigDict:
    return ConfigDict(
        {
            "source": "world",  # or "files"
            "template": "",  # a template file; empty: the default one; "chat": the chat template of tokenizer.path
            "chat_date": "2024-07-26",  # what a chat template is told of the day: batches must not depend on it
            "on_bad_row": "error",  # or "skip": counted and listed
            "world": {
                "seed": 0,
                "documents": 30_000,
                "valid_documents": 400,
                "demonstrations": 800,
                "valid_demonstrations": 200,
                "careless": 0.0,  # share of the demonstrations that are rude or ramble
                "rm_prompts": 1000,
                "ppo_prompts": 2000,
                "valid_prompts": 200,
                "test_prompts": 512,
            },
            # Comma-separated names, relative to dir: name[@rows][*weight][:split][:theirs=ours;theirs=ours], see data/corpus.py.
            "files": {
                "dir": "",
                "documents": "",
                "document_end": "",  # regular expression between documents of a .txt file
                "demonstrations": "",
                "rankings": "",
                "rated_size": 8,  # completions that are rated by themselves come together in rankings of so many
                "rated_pairs": "",  # or in pairs: "2<9" is one scored at least 9 over one scored at most 2
                "prompts": "",  # empty: the prompts of the demonstrations and rankings
                "group_field": "group",  # rows that share its value never lie in two splits; "user": as the paper (A.2)
                "near_duplicates": "together",  # in one split; or "drop": one prompt of them stays (3.2), "ignore"
                "common_prefix": 100,  # characters that near duplicates share, unstated; see data/duplicates.py
                "user_field": "user",
                "per_user": 0,  # prompts of a user at most; 3.2: 200; 0: no limit
                "held_out_labelers": "",  # names, or a share as "20%": never in training; their other rows are "heldout"
                "splits": "shares",  # or "published": by the rows' field `split`, where they have one
                "valid_share": 0.1,
                "test_share": 0.1,
            },
        }
    )


def optimizer_config() -> ConfigDict:
    return ConfigDict(
        {
            "b1": 0.9,  # App. C
            "b2": 0.95,  # App. C
            "eps": 1e-8,  # unstated; GPT-3's
            "eps_placement": "torch",  # unstated; "tf1" is OpenAI's released code (Huang et al., detail 21)
            "weight_decay": 0.0,  # unstated
            "max_grad_norm": 1.0,  # unstated; GPT-3's
        }
    )


def _trained(**fields) -> ConfigDict:
    """What every trained stage has."""
    common = {
        # None: the run's; a number: this stage is the same whatever the run's seed, as one pretrained model under all seeds.
        "seed": config_dict.placeholder(int),
        "init": "",  # stage, or directory of released weights (relative to data.files.dir), to start from; empty: random
        "microbatches": 1,  # parts of a batch; no result depends on it
        "schedule": "cosine",
        "warmup_steps": 0,
        "warmup_from": 0.1,
        "final_fraction": 0.1,  # cosine to 10 % of the peak (C.1 to C.3)
        "checkpoint_every": 100,  # steps
    }
    return ConfigDict(common | fields | {"optimizer": optimizer_config()})


def pretrain_config() -> ConfigDict:
    return _trained(
        kind="pretrain",
        model=ConfigDict(),  # fields of config.model that differ: the base of a reward model of another size
        length=2048,
        batch_size=256,
        steps=10_000,
        learning_rate=2e-4,
        warmup_steps=100,
        validate_every=200,
    )


def sft_config() -> ConfigDict:
    return _trained(
        kind="sft",
        init="pretrain",
        epochs=16.0,  # C.1
        batch_size=32,  # C.1; 8 at 175B
        learning_rate=9.65e-6,  # C.1, 1.3B and 6B; 5.03e-6 at 175B
        dropout_rate=0.2,  # residual, C.1
        packed=False,  # True: several demonstrations a row; a batch holds the same ones, in fewer rows
        pretrain_mix=0.0,  # share of a batch; 0.1 for the "PPO init" of C.3
        validate_epochs=1.0,
        select="loss",  # by validation "loss", or "reward" with a reward model, as the paper does
        reward="",  # whose reward model selects: an earlier stage, or the work directory of a finished run
    )


def collect_config() -> ConfigDict:
    return ConfigDict(
        {
            "kind": "collect",
            "models": ("pretrain@1.0", "sft@1.0", "sft@0.7"),  # stage@temperature
            "min_completions": 4,  # K, section 3.5
            "max_completions": 9,
            "borrowed": 0,  # of the K, samples of other prompts: off the topic (Liu et al. 2024, arXiv 2409.13156)
            "rankings": "",  # an earlier collect stage, whose completions are ranked anew instead of sampling others
            "labeler": "world",  # or "reward_model": AI feedback
            # Whose: a stage of this run, the work directory of a finished one, or a released reward model's (relative to
            # data.files.dir).
            "reward": "",
            "held_out_group": "caution",  # of the world's labelers: never in training
            "agreement": 0.726,  # section 3.4, two training labelers
            "gap": 0.028,  # section 4.1, 72.4 - 69.6 %
            "batch_size": 256,  # completions sampled at once
        }
    )


def reward_model_config() -> ConfigDict:
    return _trained(
        kind="reward_model",
        model=ConfigDict(),  # fields of config.model that differ in this model and the value model (C.2: 6B beside all)
        init="sft",  # section 3.5; C.2 says a 6B model tuned on public NLP sets, and that it matters little
        rankings="",  # the collect stage whose rankings it learns from; empty: the first's, or without one the corpus's
        subset="",  # of their prompts, in an order drawn by the seed: ":1000", ":50%", "50%:"; empty: all
        epochs=1.0,  # C.2: more epochs overfit
        batch_size=64,  # prompts, C.2
        packed=False,  # True: a prompt's completions share one row behind one copy of it; the scores are the same
        length=0,  # tokens of a row in training; 0: what the longest needs
        learning_rate=9e-6,  # C.2
        loss="kwise",  # or "pooled" (pairs shuffled into one pool), "regression"
    )


def dpo_config() -> ConfigDict:
    """Rafailov et al. 2023, appendix B, but for the optimizer: theirs is RMSprop."""
    return _trained(
        kind="dpo",
        init="sft",  # also the reference
        rankings="",  # as in reward_model_config, and so is `subset`
        subset="",
        beta=0.1,  # the KL coefficient whose optimum is sought; 0.5 for TL;DR
        label_smoothing=0.0,  # how often a label is taken to be wrong
        epochs=1.0,
        batch_size=64,  # prompts
        packed=False,  # as in reward_model_config, and so is `length`
        length=0,
        learning_rate=1e-6,
        schedule="constant",
        warmup_steps=150,
        validate_epochs=1.0,
    )


def best_of_n_config() -> ConfigDict:
    """The best of n samples by a reward model, for all n up to `samples` (Stiennon et al. 2020; Nakano et al. 2021)."""
    return ConfigDict(
        {
            "kind": "best_of_n",
            "init": "sft",  # the policy: a stage
            "reward": "reward_model",  # the proxy: a stage, or a directory of a released reward model
            "judges": (),  # other reward models that say what its choice is worth, beside gold
            "pool": "",  # another best_of_n stage whose samples are scored again, instead of sampling
            "samples": 64,  # for each of the evaluation's test prompts
            "temperature": 1.0,  # the KL of best of n is that to the policy at this temperature
            "batch_size": 256,  # completions sampled at once
        }
    )


def prompted_config() -> ConfigDict:
    """A model that is not trained but shown demonstrations before every prompt: the prompted GPT-3 of section 3.5."""
    return ConfigDict(
        {
            "kind": "prompted",
            "init": "pretrain",  # the model: a stage
            "reward": "reward_model",  # a stage, or a released one's directory: chooses the prefix on validation prompts
            "candidates": 8,  # prefixes, of demonstrations drawn by the seed
            "shots": 2,  # demonstrations of a prefix
            "length": 0,  # tokens of prefix and prompt: the shots that fit are shown; 0: all that model.max_length leaves
        }
    )


def ppo_config() -> ConfigDict:
    return ConfigDict(
        {
            "kind": "ppo",
            "init": "sft",  # the policy and the KL reference (C.3's "PPO init")
            "reward": "reward_model",  # a stage, or a directory of a released reward model (relative to data.files.dir)
            "advantage": "gae",  # or without a value model: "rloo", "grpo", "reinforce"; see advantages.of_completions
            "samples_per_prompt": 1,  # completions of a prompt in a batch; "rloo" and "grpo" compare them
            "value": "separate",  # section 3.5: a model of its own; or "shared": a head on the policy's trunk, one optimizer
            "value_init": "reward",  # section 3.5; or "policy" (its trunk, a fresh head), "zero" (a head of 0), "random"
            "iterations": 500,  # 256k episodes of 512 (C.4)
            "batch_size": 512,  # C.4
            "minibatch_size": 64,  # C.4
            "microbatches": 1,  # parts of a minibatch
            "sample_parts": 1,  # in which an iteration's prompts are sampled, to save memory; no result depends on it
            "ppo_epochs": 1,  # C.4
            "kl_coef": 0.02,  # C.4 (beta)
            "kl_in": "reward",  # section 3.5; or "loss" (Shao et al. 2024): its token mean beside the policy loss
            "kl_estimator": "k1",  # of a token's penalty; or "k2", "k3", see advantages.KLEstimates; objective/kl is k1
            "kl_target": config_dict.placeholder(float),  # nats; set: adaptive coefficient (Ziegler et al. 2019)
            "kl_horizon": 10_000.0,  # episodes, Ziegler et al.
            "ptx_coef": 0.0,  # C.4: 27.8 for PPO-ptx (gamma); of the token mean, see ppo.ptx_loss
            "ptx_ratio": 8,  # pretraining sequences per episode (C.4)
            "ptx_length": 0,  # unstated; 0: prompt_length + completion_length
            "ptx_microbatches": 1,
            "cliprange": 0.2,  # C.4
            "cliprange_value": 0.2,  # unstated; Stiennon et al., OpenAI's code
            "vf_coef": 1.0,  # unstated; a value model has its own optimizer: it matters with clipping, or a shared trunk
            "entropy_coef": 0.0,  # unstated; of the token mean of the entropy, in nats
            "learning_rate": 8.05e-6,  # not printed; the largest that did not diverge without ptx (Fig. 38)
            "value_learning_rate": 9e-6,  # C.4; 5e-6 at 175B
            "schedule": "constant",  # C.4; or "linear", "cosine", down to final_fraction
            "final_fraction": 0.0,
            "warmup_iterations": 10,  # C.4
            "warmup_from": 0.1,  # C.4
            "temperature": 1.0,  # C.4
            "gamma": 1.0,  # C.4: no discount
            "lam": 0.95,  # unstated; Stiennon et al.
            "whiten_rewards": False,  # unstated; off in Stiennon et al. and Huang et al.
            "whiten_advantages": "batch",  # unstated; or "minibatch" (OpenAI's code, Huang et al. detail 18), "none"
            "missing_eos": "replace",  # unstated; Ziegler et al.: a fixed score instead; or "subtract", "none"
            "missing_eos_value": -1.0,
            "ema_decay": 0.992,  # C.4, per optimizer step (unstated whether per step or iteration); see train.averaged
            "output": "ema",  # unstated; which weights are evaluated, handed on and exported: or the last, "params"
            "optimizer": optimizer_config(),
            "value_optimizer": optimizer_config(),
            "log_gold": False,  # the world's labeler judges each rollout: objective/gold, objective/gold_sem
            "checkpoint_every": 10,  # iterations
        }
    )
