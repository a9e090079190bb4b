"""The files of a run, read for reports."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable

import rlhf_jax.stages  # noqa: F401  registers the kinds of stages
from rlhf_jax.evaluate.policy import read_rows
from rlhf_jax.fields import noted, registry
from rlhf_jax.loop import STEPS
from rlhf_jax.metrics import read_metrics
from rlhf_jax.report import record_forms as forms
from rlhf_jax.report.form import Object, check, check_lines, is_number
from rlhf_jax.report.record_forms import SPLITS
from rlhf_jax.report.tables import REFERENCE
from rlhf_jax.runtime import finished
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_if_there, read_json_lines
from rlhf_jax.runtime.terminal import visible
from rlhf_jax.runtime.workdir import config_of

_LABELS = {"ppo_ptx": "PPO-ptx", "rloo": "RLOO", "grpo": "GRPO"}  # names of stages that are not those of their kinds


def label(stage: str) -> str:
    """Returns the name of a stage in tables and figures."""
    kind = registry.KINDS.get(stage)
    return _LABELS.get(stage) or (kind and kind.label) or visible(stage.replace("_", " "))


def reference_label(names: Iterable[str | None]) -> str:
    """Returns the label of what KL and win rates refer to, from the names in the files of policies.

    Several are "the reference". None is SFT, because the runs that do not name it are older than any other reference.
    """
    found = set(names) - {None}
    if len(found) > 1:
        return REFERENCE
    return label(found.pop()) if found else "SFT"


def estimate_of(estimates: dict, name: str) -> dict | None:
    """Returns the estimate {value, low, high} of a name, or None if it is missing or was not finite."""
    found = estimates.get(name)
    return found if found and found["value"] is not None else None


@dataclasses.dataclass(frozen=True)
class Record:
    """A run, finished or not.

    Attributes:
      path: its directory.
      config: config.json.
      overrides: overrides.json, or {}.
      done: stage -> done.json, for the finished stages in the order of the pipeline.
      evaluations: stage -> evaluation.json, for the evaluated policies in the order of the pipeline.
      reward: evaluation.json of the first reward model, or None.
      totals: stage -> number of its steps, for the stages that have noted it.
    """

    path: pathlib.Path
    config: dict
    overrides: dict
    done: dict[str, dict]
    evaluations: dict[str, dict]
    reward: dict | None
    totals: dict[str, int]

    @classmethod
    def load(cls, path) -> "Record":
        """Returns the run in a directory.

        Raises:
          InputError: the directory holds no run, or a damaged file.
        """
        path = pathlib.Path(path)
        config = check(path / "config.json", config_of(path), forms.CONFIG)
        check(path / "config.json", config, Object(dict.fromkeys(config["stages"], forms.STAGE)))
        kinds = {stage: config[stage]["kind"] for stage in config["stages"]}
        for stage, kind in kinds.items():
            if kind not in registry.KINDS:
                raise InputError(
                    f"{path / 'config.json'} is damaged: its '{stage}.kind' is '{visible(kind)}' and none of "
                    f"{', '.join(registry.KINDS)}; put it back as it was written"
                )
        check(path / "config.json", config, Object({stage: forms.MIXING for stage in kinds if _can_mix(config, stage)}))
        noted.check(config, path)

        def read(name, form, *wanted, how=finished.read_if_there):
            """Returns a file by stage, for the stages of wanted kinds that have it."""
            files = {stage: path / stage / name for stage, kind in kinds.items() if kind in wanted}
            found = {stage: how(file) for stage, file in files.items()}
            return {stage: check(files[stage], facts, form) for stage, facts in found.items() if facts is not None}

        reward = read("evaluation.json", forms.REWARD, *registry.giving("reward"))
        for stage, facts in reward.items():
            splits = [name for name in SPLITS if "accuracy" in facts.get(name, {})]
            check(path / stage / "evaluation.json", facts, Object(dict.fromkeys(splits, forms.SPLIT)))
        return cls(
            path=path,
            config=config,
            overrides=read_if_there(path / "overrides.json") or {},
            done=read(finished.DONE, forms.DONE, *kinds.values(), how=lambda file: finished.facts(file.parent)),
            evaluations=read(
                "evaluation.json", forms.POLICY, *(kind for kind, stage in registry.KINDS.items() if stage.judged)
            ),
            reward=next(iter(reward.values()), None),
            totals={stage: found["total"] for stage, found in read(STEPS, forms.STEPS, *kinds.values()).items()},
        )

    @property
    def reward_splits(self) -> dict[str, dict]:
        """The results of the reward model by split of the rankings, training labelers first."""
        return {name: facts for name in SPLITS if "accuracy" in (facts := (self.reward or {}).get(name, {}))}

    def kind(self, stage: str) -> str:
        """Returns the kind of a stage."""
        return self.config[stage]["kind"]

    def estimate(self, stage: str, name: str) -> dict | None:
        """Returns the estimate {value, low, high} of a policy, or None if there is none."""
        return estimate_of(self.evaluations[stage]["estimates"], name)

    @functools.cached_property
    def base(self) -> str | None:
        """The policy before any demonstration."""
        return next((stage for stage in self.evaluations if registry.of(self.config, stage).base), None)

    @functools.cached_property
    def reference(self) -> str | None:
        """The SFT policy, to which win rate and KL refer."""
        return next((stage for stage in self.evaluations if registry.of(self.config, stage).reference), None)

    @functools.cached_property
    def learned(self) -> list[str]:
        """The PPO policies."""
        return [stage for stage in self.evaluations if _can_mix(self.config, stage)]

    @functools.cached_property
    def plain(self) -> str | None:
        """The first PPO policy without a pretraining gradient."""
        return next((stage for stage in self.learned if not self.config[stage]["ptx_coef"]), None)

    @functools.cached_property
    def mixed(self) -> list[str]:
        """The PPO policies with a pretraining gradient."""
        return [stage for stage in self.learned if self.config[stage]["ptx_coef"]]

    @functools.cached_property
    def curves(self) -> dict[str, list[dict]]:
        """The rows of metrics.jsonl by stage, with their numbers alone."""
        files = {stage: self.path / stage / "metrics.jsonl" for stage in self.config["stages"]}
        found = {stage: read_metrics(file) for stage, file in files.items() if finished.checked(file).exists()}
        return {
            stage: [{name: value for name, value in row.items() if is_number(value)} for row in rows]
            for stage, rows in found.items()
        }

    @functools.cached_property
    def data(self) -> dict:
        """data_report.json: the fates of the rows of files, and of the records of each stage."""
        path = self.path / "data_report.json"
        found = read_if_there(path)
        return {"files": {}, "stages": {}} if found is None else check(path, found, forms.DATA)

    @functools.cached_property
    def _rows(self) -> dict[str, dict[str, list[dict]]]:
        """The rows of samples.jsonl and skills.jsonl: name of the file -> policy -> rows."""
        return {name: self._rows_of(name, form) for name, form in forms.ROWS.items()}

    def _rows_of(self, name, form):
        """Returns the rows of a file by policy, for the policies that have it."""
        files = {stage: self.path / stage / name for stage in self.evaluations}
        return {
            stage: check_lines(file, read_rows(file), form)
            for stage, file in files.items()
            if finished.checked(file).exists()
        }

    @functools.cached_property
    def _training_rows(self) -> dict[str, dict[str, list[dict]]]:
        """The rows that stages noted while they trained: name of the file -> stage -> rows."""
        found = {}
        for name, form in forms.TRAINING_ROWS.items():
            files = {stage: self.path / stage / name for stage in self.config["stages"]}
            found[name] = {
                stage: check_lines(file, read_json_lines(file, cut=stage not in self.done), form)
                for stage, file in files.items()
                if finished.checked(file).exists()
            }
        return found

    @property
    def training_samples(self) -> dict[str, list[dict]]:
        """The completions that stages noted while they trained, by stage."""
        return {stage: rows for stage, rows in self._training_rows["training_samples.jsonl"].items() if rows}

    @property
    def warnings(self) -> dict[str, list[dict]]:
        """The warnings of stages, finished or not, by stage."""
        return {stage: rows for stage, rows in self._training_rows["warnings.jsonl"].items() if rows}

    def rows(self, name: str) -> dict[str, list[dict]]:
        """Returns the rows of samples.jsonl or skills.jsonl by policy, for the policies that have the file."""
        return self._rows[name]

    def read_all(self) -> None:
        """Reads the remaining files, so that an error in one of them is raised now."""
        for name in ("curves", "data", "_rows", "_training_rows"):
            getattr(self, name)


def _can_mix(config: dict, stage: str) -> bool:
    """Whether the kind of a stage can mix in a pretraining gradient, which PPO alone can."""
    return "ptx_coef" in registry.of(config, stage).fields.parts
