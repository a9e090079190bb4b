"""The table of fields, of the stages: one section for each kind."""

from rlhf_jax.fields import forms
from rlhf_jax.fields.field import Field, Section, kind
from rlhf_jax.fields.model import MODEL
from rlhf_jax.fields.ranges import (
    COUNT,
    COUNT_OR_NONE,
    FINITE,
    FLAG,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE,
    SHARE_BELOW_ONE,
    SOME_TEXT,
    TEXT,
    Number,
    OneOf,
    Several,
    Text,
    whole,
)

_PART = Text("a part of the prompts as ':1000', ':50%' or '50%:', or empty", forms.part)
_SCHEDULES = OneOf("constant", "linear", "cosine")

OPTIMIZER = Section(
    "Adam; see optim.OptimizerConfig.",
    {
        "b1": Field(0.9, SHARE_BELOW_ONE, "decay of the average gradient, 0: none is averaged; App. C"),
        "b2": Field(0.95, SHARE_BELOW_ONE, "decay of the average squared gradient, 0: none is averaged; App. C"),
        "eps": Field(1e-8, POSITIVE, "added to the denominator; unstated, GPT-3's"),
        "eps_placement": Field(
            "torch",
            OneOf("torch", "tf1"),
            "where eps goes; unstated; 'tf1' is OpenAI's released code (Huang et al., detail 21)",
        ),
        "weight_decay": Field(0.0, NOT_NEGATIVE, "decoupled, times the learning rate, 0: none; unstated"),
        "max_grad_norm": Field(
            1.0, NOT_NEGATIVE, "gradients of a larger global norm are scaled down to it, 0: never; unstated, GPT-3's"
        ),
    },
)

_TRAINED = Section(
    "What every stage that is trained by supervision has.",
    {
        "seed": Field(
            None,
            SEED,
            "None: the run's; a number: this stage is the same whatever the run's seed, as one pretrained model "
            "under all seeds",
        ),
        "init": Field(
            "",
            TEXT,
            "what it starts from: a stage, or a folder of released weights (relative to data.files.dir); empty: random",
        ),
        "microbatches": Field(1, COUNT, "parts of a batch, to save memory; no result depends on it"),
        "schedule": Field("cosine", _SCHEDULES, "of the learning rate after the warm-up; C.1 to C.3"),
        "warmup_steps": Field(
            0, COUNT_OR_NONE, "steps in which the learning rate rises to its peak, at most those of the stage, 0: none"
        ),
        "warmup_from": Field(0.1, SHARE, "share of the peak where the warm-up begins, from 0"),
        "final_fraction": Field(
            0.1, SHARE, "share of the peak where the schedule ends, 0: at nothing; C.1 to C.3: 10 %"
        ),
        "checkpoint_every": Field(100, COUNT, "steps"),
    },
)

_LEARNING_RATE = "at its peak, 0: nothing is learned"
_OWN_MODEL = Section(
    "Fields of config.model that differ in the model of this stage, set in an experiment file; empty: it is the policy's model.",
    MODEL.parts,
    partial=True,
)


def _trained(about: str, **changes) -> Section:
    """Common fields with these defaults, fields of its own, and an optimizer."""
    return _TRAINED.but(about, **changes, optimizer=OPTIMIZER)


PRETRAIN = _trained(
    "A base model from raw text, for small worlds; real work starts from released weights.",
    kind=kind("pretrain"),
    model=_OWN_MODEL,
    length=Field(2048, whole(2), "tokens of a row of packed documents"),
    batch_size=Field(256, COUNT, "rows"),
    steps=Field(10_000, COUNT, "optimizer steps"),
    learning_rate=Field(2e-4, NOT_NEGATIVE, _LEARNING_RATE),
    warmup_steps=100,
    validate_every=Field(200, COUNT_OR_NONE, "steps between two validations, 0: at the end alone"),
)

SFT = _trained(
    "Step 1: supervised fine-tuning on demonstrations.",
    kind=kind("sft"),
    init="pretrain",
    epochs=Field(16.0, POSITIVE, "how often every demonstration is seen; C.1"),
    batch_size=Field(32, COUNT, "demonstrations; C.1: 32, and 8 at 175B"),
    learning_rate=Field(9.65e-6, NOT_NEGATIVE, f"{_LEARNING_RATE}; C.1: 1.3B and 6B, and 5.03e-6 at 175B"),
    dropout_rate=Field(0.2, SHARE_BELOW_ONE, "on the residual stream, 0: none; C.1"),
    packed=Field(False, FLAG, "True: several demonstrations a row; a batch holds the same ones, in fewer rows"),
    pretrain_mix=Field(
        0.0, SHARE_BELOW_ONE, "share of a batch that is pretraining text, 0: none; 0.1 for the 'PPO init' of C.3"
    ),
    validate_epochs=Field(1.0, POSITIVE, "epochs between two validations, of which the best is kept"),
    select=Field(
        "loss", OneOf("loss", "reward"), "the best by validation loss, or by a reward model as the paper does (C.1)"
    ),
    reward=Field("", TEXT, "whose reward model selects: an earlier stage, or the work directory of a finished run"),
)

COLLECT = Section(
    "Between the steps: several completions for each prompt, ranked.",
    {
        "kind": kind("collect"),
        "models": Field(
            ("pretrain@1.0", "sft@1.0", "sft@0.7"),
            Several(
                Text(read=forms.model_at, empty=False),
                "one or several of stage@temperature, such as 'sft@0.7'",
                least=1,
            ),
            "who completes, in turn; one that is named twice does it twice as often; temperature 0 takes the likeliest tokens",
        ),
        "min_completions": Field(4, whole(2), "of a prompt (K); section 3.5"),
        "max_completions": Field(9, whole(2), "of a prompt (K); section 3.5"),
        "borrowed": Field(
            0,
            COUNT_OR_NONE,
            "of the K, samples of other prompts: off the topic, 0: none (Liu et al. 2024, arXiv 2409.13156)",
        ),
        "rankings": Field(
            "", TEXT, "an earlier collect stage, whose completions are ranked anew instead of sampling others"
        ),
        "labeler": Field("world", OneOf("world", "reward_model"), "who ranks: the world's labelers, or AI feedback"),
        "reward": Field(
            "",
            TEXT,
            "whose reward model ranks: a stage of this run, the work directory of a finished one, or a released reward "
            "model's folder (relative to data.files.dir)",
        ),
        "held_out_group": Field(
            "caution",
            OneOf("", "brevity", "warmth", "exactness", "detail", "caution"),
            "of the world's labelers: never in training; empty: none",
        ),
        "agreement": Field(
            0.726,
            Number(above=0.5, below=1),
            "of two labelers of a group, on pairs; section 3.4, two training labelers",
        ),
        "gap": Field(
            0.028,
            SHARE,
            "by how much predicting labelers held out is less accurate, 0: not at all; section 4.1, 72.4 - 69.6 %",
        ),
        "batch_size": Field(256, COUNT, "completions sampled at once"),
    },
)

_PREFERENCES = dict(
    rankings=Field(
        "", TEXT, "the collect stage whose rankings it learns from; empty: the first's, or without one the corpus's"
    ),
    subset=Field("", _PART, "of their prompts, in an order drawn by the seed; empty: all"),
    packed=Field(
        False, FLAG, "True: a prompt's completions share one row behind one copy of it; the scores are the same"
    ),
    length=Field(0, COUNT_OR_NONE, "tokens of a row in training, 0: what the longest needs"),
)

REWARD_MODEL = _trained(
    "Step 2: a reward model from rankings.",
    kind=kind("reward_model"),
    model=_OWN_MODEL,  # C.2: 6B beside all
    init="sft",  # section 3.5; C.2 says a 6B model tuned on public NLP sets, and that it matters little
    **_PREFERENCES,
    epochs=Field(1.0, POSITIVE, "how often every ranking is seen; C.2: more overfit"),
    batch_size=Field(64, COUNT, "prompts; C.2"),
    learning_rate=Field(9e-6, NOT_NEGATIVE, f"{_LEARNING_RATE}; C.2"),
    loss=Field(
        "kwise",
        OneOf("kwise", "pooled", "regression"),
        "all pairs of a prompt as one element (section 3.5), pairs shuffled into one pool, or scores themselves",
    ),
)

DPO = _trained(
    "Direct preference optimisation, a comparator: Rafailov et al. 2023, appendix B, but for the optimizer: theirs is RMSprop.",
    kind=kind("dpo"),
    init="sft",  # also the reference
    **_PREFERENCES,
    beta=Field(0.1, POSITIVE, "the KL coefficient whose optimum is sought; Rafailov et al.: 0.1, and 0.5 for TL;DR"),
    label_smoothing=Field(0.0, Number(low=0, below=0.5), "how often a label is taken to be wrong, 0: never"),
    epochs=Field(1.0, POSITIVE, "how often every ranking is seen"),
    batch_size=Field(64, COUNT, "prompts"),
    learning_rate=Field(1e-6, NOT_NEGATIVE, _LEARNING_RATE),
    schedule="constant",
    warmup_steps=150,
    validate_epochs=Field(1.0, POSITIVE, "epochs between two validations"),
)

BEST_OF_N = Section(
    "The best of n samples by a reward model, for all n up to `samples` (Stiennon et al. 2020; Nakano et al. 2021).",
    {
        "kind": kind("best_of_n"),
        "init": Field("sft", SOME_TEXT, "the policy: a stage"),
        "reward": Field("reward_model", SOME_TEXT, "the proxy: a stage, or a folder of a released reward model"),
        "judges": Field(
            (),
            Several(SOME_TEXT, "names of reward models, each once, or ()", distinct=True),
            "other reward models that say what its choice is worth, beside gold",
        ),
        "pool": Field("", TEXT, "another best_of_n stage whose samples are scored again, instead of sampling"),
        "samples": Field(64, COUNT, "for each of the evaluation's test prompts"),
        "temperature": Field(
            1.0, POSITIVE, "of the samples; the KL of best of n is that to the policy at this temperature"
        ),
        "batch_size": Field(256, COUNT, "completions sampled at once"),
    },
)

PROMPTED = Section(
    "A model that is not trained but shown demonstrations before every prompt: the prompted GPT-3 of section 3.5.",
    {
        "kind": kind("prompted"),
        "init": Field("pretrain", SOME_TEXT, "the model: a stage"),
        "reward": Field(
            "reward_model", SOME_TEXT, "a stage, or a released one's folder: chooses the prefix on validation prompts"
        ),
        "candidates": Field(8, COUNT, "prefixes, of demonstrations drawn by the seed"),
        "shots": Field(2, COUNT, "demonstrations of a prefix"),
        "length": Field(
            0,
            COUNT_OR_NONE,
            "tokens of prefix and prompt: the shots that fit are shown, 0: all that model.max_length leaves",
        ),
    },
)

PPO = Section(
    "Step 3: PPO against a reward model, with a KL penalty.",
    {
        "kind": kind("ppo"),
        "init": Field("sft", TEXT, "the policy and the KL reference (C.3's 'PPO init')"),
        "reward": Field(
            "reward_model", SOME_TEXT, "a stage, or a folder of a released reward model (relative to data.files.dir)"
        ),
        "advantage": Field(
            "gae",
            OneOf("gae", "rloo", "grpo", "reinforce"),
            "all but the first do without a value model; see advantages.of_completions",
        ),
        "samples_per_prompt": Field(1, COUNT, "completions of a prompt in a batch; 'rloo' and 'grpo' compare them"),
        "value": Field(
            "separate",
            OneOf("separate", "shared"),
            "section 3.5: a model of its own; or a head on the policy's trunk, with one optimizer",
        ),
        "value_init": Field(
            "reward",
            OneOf("reward", "policy", "random", "zero"),
            "section 3.5: the reward model; or the policy's trunk with a fresh head, or with a head of 0, or random",
        ),
        "iterations": Field(500, COUNT, "rollouts, each with its updates; C.4: 256k episodes, 500 of 512"),
        "batch_size": Field(512, COUNT, "episodes of an iteration; C.4"),
        "minibatch_size": Field(64, COUNT, "episodes of an optimizer step; C.4"),
        "microbatches": Field(1, COUNT, "parts of a minibatch, to save memory; no result depends on it"),
        "sample_parts": Field(
            1, COUNT, "in which an iteration's prompts are sampled, to save memory; no result depends on it"
        ),
        "ppo_epochs": Field(1, COUNT, "how often the episodes of an iteration are learned from; C.4"),
        "kl_coef": Field(0.02, NOT_NEGATIVE, "beta, the price of a nat of KL to the reference, 0: no penalty; C.4"),
        # What of these three is None is as the paper of `advantage` has it: ppo_options.PAPERS.
        "kl_in": Field(
            None,
            OneOf("reward", "loss"),
            "where the penalty is: in the reward, or its token mean beside the policy loss; None: "
            "as the paper of `advantage` has it, which is the reward (3.5) but for 'grpo'; see docs/kl.md",
        ),
        "kl_estimator": Field(
            None,
            OneOf("k1", "k2", "k3"),
            "of a token's penalty, see advantages.KLEstimates; None: 'k1' in the reward, 'k3' in "
            "the loss; objective/kl is k1 whatever it is",
        ),
        "kl_target": Field(
            None, POSITIVE, "nats; None: kl_coef stays; a number: it is steered there (Ziegler et al. 2019)"
        ),
        "kl_horizon": Field(10_000.0, POSITIVE, "episodes, how slowly kl_target steers; Ziegler et al."),
        "ptx_coef": Field(
            0.0, NOT_NEGATIVE, "gamma of PPO-ptx, of the token mean, see ppo.ptx_loss, 0: none; C.4: 27.8"
        ),
        "ptx_ratio": Field(8, COUNT_OR_NONE, "pretraining sequences per episode, 0: none; C.4"),
        "ptx_length": Field(
            0, whole(2, also=0), "tokens of such a sequence, 0: prompt_length + completion_length; unstated"
        ),
        "ptx_microbatches": Field(
            1, COUNT, "parts of a step's pretraining sequences, to save memory; no result depends on it"
        ),
        "cliprange": Field(0.2, POSITIVE, "of the policy's ratio; C.4"),
        "cliprange_value": Field(
            0.2, POSITIVE, "of the value's change, a large number: never; unstated; Stiennon et al., OpenAI's code"
        ),
        "vf_coef": Field(
            1.0,
            NOT_NEGATIVE,
            "of the value loss, 0: no value is learned; unstated; a value model has its own optimizer: it "
            "matters with clipping, or a shared trunk",
        ),
        "entropy_coef": Field(
            0.0, FINITE, "of the token mean of the entropy, in nats, 0: none, negative: entropy costs; unstated"
        ),
        "learning_rate": Field(
            8.05e-6,
            NOT_NEGATIVE,
            f"{_LEARNING_RATE}; not printed; the largest that did not diverge without ptx (Fig. 38)",
        ),
        "value_learning_rate": Field(9e-6, NOT_NEGATIVE, f"{_LEARNING_RATE}; C.4; 5e-6 at 175B"),
        "schedule": Field(
            "constant", _SCHEDULES, "of the learning rates after the warm-up, down to final_fraction; C.4"
        ),
        "final_fraction": Field(0.0, SHARE, "share of the peak where the schedule ends, 0: at nothing"),
        "warmup_iterations": Field(10, COUNT_OR_NONE, "in which the learning rates rise to their peak, 0: none; C.4"),
        "warmup_from": Field(0.1, SHARE, "share of the peak where the warm-up begins, from 0; C.4"),
        "temperature": Field(1.0, POSITIVE, "of rollouts, and of every log-probability; C.4"),
        "gamma": Field(1.0, SHARE, "discount, 0: each token answers for its own reward alone; C.4: 1, none"),
        "lam": Field(0.95, SHARE, "lambda of GAE, 0: one step; unstated; Stiennon et al."),
        "whiten_rewards": Field(False, FLAG, "unstated; off in Stiennon et al. and Huang et al."),
        "whiten_advantages": Field(
            None,
            OneOf("batch", "minibatch", "none"),
            "over what; None: 'batch' for 'gae', else 'none', as the papers; unstated; "
            "'minibatch' is OpenAI's code (Huang et al., detail 18)",
        ),
        "missing_eos": Field(
            "replace",
            OneOf("replace", "subtract", "none"),
            "what missing_eos_value does to the score of a completion without an end; unstated; Ziegler et al.: a fixed score instead",
        ),
        "missing_eos_value": Field(
            -1.0, FINITE, "the score that replaces, or is taken off, any number, also 0 and -1; unstated"
        ),
        "ema_decay": Field(
            0.992,
            SHARE_BELOW_ONE,
            "of the moving average of the weights, per optimizer step, 0: the weights themselves; C.4 "
            "(unstated whether per step or iteration); see train.averaged",
        ),
        "output": Field(
            "ema",
            OneOf("ema", "params"),
            "which weights are evaluated, handed on and exported: the average, or the last; unstated",
        ),
        "optimizer": OPTIMIZER,
        "value_optimizer": OPTIMIZER,
        "log_gold": Field(
            False, FLAG, "True: the world's labeler judges each rollout: objective/gold, objective/gold_sem"
        ),
        "checkpoint_every": Field(10, COUNT, "iterations"),
    },
)

KINDS = {
    section.parts["kind"].default: section
    for section in (PRETRAIN, SFT, COLLECT, REWARD_MODEL, DPO, PPO, BEST_OF_N, PROMPTED)
}
