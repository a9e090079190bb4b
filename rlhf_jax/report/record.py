"""What a run left in its directory, read for reports."""

import dataclasses
import functools
import pathlib

from rlhf_jax.evaluate.policy import read_rows
from rlhf_jax.metrics import read_metrics
from rlhf_jax.run import JUDGED
from rlhf_jax.runtime import finished
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_if_there, read_json
from rlhf_jax.runtime.terminal import visible

_LABELS = {
    "pretrain": "base",
    "prompted": "prompted base",
    "sft": "SFT",
    "ppo": "PPO",
    "ppo_ptx": "PPO-ptx",
    "dpo": "DPO",
    "best_of_n": "best of n",
    "rloo": "RLOO",
    "grpo": "GRPO",
}
SPLITS = {"valid": "training labelers", "heldout": "held-out labelers"}  # of a reward model's test
_MARKED = ("seconds", "finished_at")  # of done.json


def label(stage: str) -> str:
    """What a stage is called in tables and figures."""
    return _LABELS.get(stage, visible(stage.replace("_", " ")))


@dataclasses.dataclass(frozen=True)
class Record:
    """A run, finished or not. Dicts by stage are in the order of the pipeline."""

    path: pathlib.Path
    config: dict
    overrides: dict
    done: dict[str, dict]
    evaluations: dict[str, dict]  # of policies
    reward: dict | None  # the reward model's evaluation.json

    @classmethod
    def load(cls, path) -> "Record":
        """Reads a run.

        Raises:
            InputError: the path is no run.
        """
        path = pathlib.Path(path)
        if not (path / "config.json").is_file():
            raise InputError(f"{path} is no work directory of a run: it has no config.json")
        config = read_json(path / "config.json")
        try:
            kinds = {stage: config[stage]["kind"] for stage in config["stages"]}
        except (KeyError, TypeError) as error:
            raise InputError(f"{path / 'config.json'} describes no run: it has no {error}") from error

        def read(name, *wanted):
            found = {
                stage: finished.read_if_there(path / stage / name) for stage, kind in kinds.items() if kind in wanted
            }
            return {stage: facts for stage, facts in found.items() if facts is not None}

        done = {stage: facts for stage in kinds if (facts := finished.facts(path / stage, needs=_MARKED)) is not None}
        return cls(
            path=path,
            config=config,
            overrides=read_if_there(path / "overrides.json") or {},
            done=done,
            evaluations=read("evaluation.json", *JUDGED),
            reward=next(iter(read("evaluation.json", "reward_model").values()), None),
        )

    @property
    def reward_splits(self) -> dict[str, dict]:
        """What the reward model reached on each split of the rankings, training labelers first."""
        found = {
            name: facts
            for name, facts in (self.reward or {}).items()
            if isinstance(facts, dict) and "accuracy" in facts
        }
        return {name: found[name] for name in sorted(found, key=[*SPLITS, *found].index)}

    def kind(self, stage: str) -> str:
        return self.config[stage]["kind"]

    def estimate(self, stage: str, name: str) -> dict | None:
        """{value, low, high} of a policy."""
        return self.evaluations[stage]["estimates"].get(name)

    @functools.cached_property
    def base(self) -> str | None:
        """The policy before any demonstration."""
        return self._first("pretrain")

    @functools.cached_property
    def reference(self) -> str | None:
        """The SFT policy, which win rate and KL refer to."""
        return self._first("sft")

    @functools.cached_property
    def plain(self) -> str | None:
        """The PPO policy without pretraining gradient."""
        return next((stage for stage in self._ppo() if not self.config[stage]["ptx_coef"]), None)

    @functools.cached_property
    def mixed(self) -> list[str]:
        """The PPO policies with pretraining gradient."""
        return [stage for stage in self._ppo() if self.config[stage]["ptx_coef"]]

    @functools.cached_property
    def curves(self) -> dict[str, list[dict]]:
        """metrics.jsonl of every stage that has one."""
        files = {stage: self.path / stage / "metrics.jsonl" for stage in self.config["stages"]}
        return {stage: read_metrics(file) for stage, file in files.items() if finished.checked(file).exists()}

    @functools.cached_property
    def data(self) -> dict:
        """What became of the rows of files and of each stage's records: data_report.json."""
        empty = {"files": {}, "stages": {}}
        return read_if_there(self.path / "data_report.json", needs=empty) or empty

    def rows(self, name: str) -> dict[str, list[dict]]:
        """samples.jsonl or skills.jsonl of every policy that has one."""
        files = {stage: self.path / stage / name for stage in self.evaluations}
        return {stage: read_rows(file) for stage, file in files.items() if finished.checked(file).exists()}

    def _first(self, kind):
        return next((stage for stage in self.evaluations if self.kind(stage) == kind), None)

    def _ppo(self):
        return [stage for stage in self.evaluations if self.kind(stage) == "ppo"]
