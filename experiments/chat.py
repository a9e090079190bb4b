"""My instruct model and my preferences: SFT, a reward model and PPO-ptx, all of them or some.

    python -m rlhf_jax.main --config=experiments/chat.py --data=DIR --workdir=runs/chat

DIR holds the model and the data. These fields name them, relative to DIR:

    --config.model.shape=model                              the model, a Hugging Face folder with a chat template
    --config.data.files.demonstrations=demonstrations.jsonl (instruction, input, output), or conversations
    --config.data.files.rankings=preferences.jsonl          (prompt, chosen, rejected), or K ranked completions
    --config.data.files.prompts=                            prompts for PPO; by default those of the other two files
    --config.data.files.documents=documents.txt             raw text for the pretraining mix

The part after a colon names the stages. Each stage starts from the one before it, or from the model if there is none:

    chat.py                        sft,reward_model,ppo_ptx
    chat.py:reward_model,ppo_ptx   the model has had its SFT
    chat.py:ppo_ptx                a released reward model, DIR/reward or --config.ppo_ptx.reward=FOLDER
    chat.py:sft,reward_model,ppo   no pretraining mix, and so no documents
    chat.py:sft,dpo                DPO, without a reward model

The lengths are those that 95 % of the data have, and the learning rates those that were published for models of this
size; a run prints both. docs/recipes.md shows a run from beginning to end.

Hardware: that of the model; `python -m rlhf_jax.plan` says whether it suffices.
"""

from rlhf_jax.config import default_config
from rlhf_jax.runtime.errors import InputError

STAGES = ("sft", "reward_model", "dpo", "ppo", "ppo_ptx")


def get_config(stages: str = "sft,reward_model,ppo_ptx"):
    chosen = tuple(stages.split(","))
    if unknown := [name for name in chosen if name not in STAGES]:
        raise InputError(f"experiments/chat.py:{stages}: '{unknown[0]}' is no stage; there are {', '.join(STAGES)}")
    config = default_config()
    config.stages = tuple(name for name in STAGES if name in chosen)
    config.model.shape = "model"
    model = config.model.get_ref("shape")  # follows --config.model.shape
    config.tokenizer.path = model
    config.data.update(source="files", template="chat")
    config.data.files.update(rankings="preferences.jsonl", prompts="")
    if "sft" in chosen:
        config.data.files.demonstrations = "demonstrations.jsonl"
    if "ppo_ptx" in chosen:
        config.data.files.documents = "documents.txt"
    config.prompt_length = config.completion_length = None  # those of the data
    config.too_long = "drop"

    policy = "sft" if "sft" in chosen else model
    config.sft.init = model
    # Fewer passes than the paper's 16 and no dropout: the model has had its SFT. The numbers are ours, without a search.
    config.sft.update(epochs=2.0, packed=True, dropout_rate=0.0, learning_rate=None)
    config.reward_model.update(init=policy, packed=True, learning_rate=None)
    config.dpo.update(init=policy, learning_rate=None, warmup_steps=0)
    for name in ("ppo", "ppo_ptx"):
        config[name].update(
            init=policy,
            reward="reward_model" if "reward_model" in chosen else "reward",
            learning_rate=None,
            value_learning_rate=None,
            kl_coef=0.05,  # Stiennon et al. 2020, appendix B.1, and Huang et al. 2024
            iterations=200,  # a first run; the paper has 500 iterations of 512 episodes
            batch_size=128,
            minibatch_size=32,
        )
    return config
