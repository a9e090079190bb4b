"""TL;DR summarisation with Pythia: the N+ implementation details of RLHF with PPO (Huang et al. 2024, arXiv 2403.17031).

    python -m rlhf_jax.main --config=experiments/tldr.py:1b --data=DIR --workdir=runs/tldr_1b

The sizes are 1b, 2.8b and 6.9b, and 135m, which is SmolLM2-135M-Instruct and none of the paper's. DIR holds the released
model (pythia-1b-deduped and so on) and two prepared datasets, summarize_tldr and summarize_comparisons; docs/tldr.md has
the commands that make them, and a table of all details of the paper. "Detail" below is a number in the paper, and "code"
is the authors' repository (github.com/vwxyzjn/summarize_from_feedback_details), where the paper states nothing.

Stages: `sft` on the reference summaries, `reward_model` on the comparisons from there, `ppo` from both. The section `dpo`
is there for `--config.stages=sft,reward_model,ppo,dpo`. Needs accelerators; a laptop runs a few iterations of 135m.
"""

import ml_collections

from rlhf_jax.config import default_config
from rlhf_jax.runtime.errors import InputError

SIZES = {  # the shape in shapes.py, the folder of the released model in DIR, and its rows of the embedding
    "135m": ("smollm2_135m", "SmolLM2-135M-Instruct", 49_152),
    "1b": ("pythia_1b", "pythia-1b-deduped", 50_304),
    "2.8b": ("pythia_2.8b", "pythia-2.8b-deduped", 50_304),
    "6.9b": ("pythia_6.9b", "pythia-6.9b-deduped", 50_432),
}
# Details 9, 10 and 20 state AdamW, its epsilon and the rate. The decays and the weight decay are PyTorch's own, and
# nothing clips the gradients (code).
OPTIMIZER = dict(b1=0.9, b2=0.999, eps=1e-5, eps_placement="torch", weight_decay=0.01, max_grad_norm=0.0)
RATE = 3e-6  # of all stages and all sizes, without a search


def get_config(size: str = "1b") -> ml_collections.ConfigDict:
    if size not in SIZES:
        raise InputError(f"experiments/tldr.py:{size} is unknown; the sizes are {', '.join(SIZES)}")
    shape, folder, vocab_size = SIZES[size]
    config = default_config()
    config.stages = ("sft", "reward_model", "ppo")
    config.prompt_length = 512  # detail 2
    config.completion_length = 53  # detail 4; longer reference summaries are cut where they and their prompt end
    config.model.update(shape=shape, vocab_size=vocab_size, dtype="bfloat16")  # mixed precision (detail 8)
    config.tokenizer.path = folder
    config.data.source = "files"
    config.data.files.update(
        demonstrations="summarize_tldr",  # detail 1
        rankings="summarize_comparisons",
        prompts="summarize_tldr",  # detail 21: PPO samples for the posts of SFT, shuffled in every pass
        splits="published",
        group_field="group",  # the post: no post is trained on and tested on
        near_duplicates="ignore",  # the paper looks for none
    )
    # The published split is kept whole, and so the evaluation is on test posts. Code samples at 0.01 there.
    config.evaluate.update(temperature=0.01, prompts=1024)

    config.sft.update(  # detail 9
        init=folder,
        epochs=1.0,
        batch_size=128,
        learning_rate=RATE,
        schedule="cosine",
        final_fraction=0.0,  # code: the cosine ends at nothing
        warmup_steps=0,
        dropout_rate=0.0,  # detail 7
        loss_on="sequence",  # code: of the query and the summary, all but padding is learned (detail 5)
        packed=True,  # ours: the same loss in fewer rows
    )
    preferences = dict(
        init="sft",
        epochs=1.0,
        batch_size=64,
        learning_rate=RATE,
        schedule="cosine",
        final_fraction=0.0,
        warmup_steps=0,
        completion_length=126,  # details 4 and 5: a query with a summary has at most 638 tokens
    )
    config.reward_model.update(loss="kwise", **preferences)  # detail 10; a row is one pair, so kwise is pairwise
    config.dpo.update(beta=0.05, label_smoothing=0.0, **preferences)  # detail 19; beta is the code's
    config.ppo.update(  # detail 20
        init="sft",
        reward="reward_model",
        value="separate",
        value_init="reward",  # detail 22
        iterations=1953,  # 1M episodes, which are 8.56 passes over the posts (detail 21)
        batch_size=512,
        minibatch_size=512,  # one minibatch
        ppo_epochs=4,
        learning_rate=RATE,
        value_learning_rate=RATE,
        schedule="linear",
        final_fraction=0.0,
        warmup_iterations=0,
        temperature=0.7,
        kl_coef=0.05,
        kl_in="reward",
        kl_estimator="k1",
        gamma=1.0,
        lam=0.95,
        cliprange=0.2,
        cliprange_value=0.2,
        vf_coef=0.1,
        missing_eos="replace",  # detail 23: the EOS trick
        missing_eos_value=-1.0,
        whiten_rewards=False,  # detail 24: optional, and shortens the summaries
        whiten_advantages="batch",  # detail 25
        ema_decay=0.0,  # the last weights are used
        output="params",
        ptx_coef=0.0,  # there is no pretraining gradient
    )
    for section in (config.sft, config.reward_model, config.dpo, config.ppo):
        section.optimizer.update(OPTIMIZER)
    config.ppo.value_optimizer.update(OPTIMIZER)  # code: one optimizer for both models
    return config
