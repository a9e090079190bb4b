"""MLflow: a run for a work directory, in a SQLite file of it, or of the sweep's, unless MLFLOW_TRACKING_URI is set.

The metrics of a stage have its name before theirs (`ppo/objective/kl`), at the stage's own steps, which MLflow keeps for
each metric. The project is MLflow's experiment, each field of the config is a parameter, and the sweep's name is
the tag `group`, by which MLflow's table of runs can be grouped. Tables of samples are artifacts.

A resumed run asks MLflow for the last step of the stage that it has, and logs those after it: none is there twice.
"""

import json
import logging
import os
import re
import time

from rlhf_jax.runtime.files import lock
from rlhf_jax.trackers.tracker import Tracked, Tracker, fields, load

_STORE, _ARTIFACTS, _LOCK = "mlflow.db", "mlflow", ".mlflow.lock"
_MOST_PARAMS, _LONGEST_PARAM, _LONGEST_TAG = 100, 6000, 5000  # MLflow's limits: of a batch, of a value
_SAMPLES = "samples"


def package():
    """Returns the package, without its reports of usage."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    load(["sqlalchemy"])
    load(["alembic"])
    return load(["mlflow.tracking"])


class MLflow(Tracker):
    """See the top of the file."""

    def __init__(self, run: Tracked):
        tracking = package()
        self._entities = load(["mlflow.entities"])
        for name in ("mlflow", "alembic"):  # they tell how they make the tables of a new store
            logging.getLogger(name).setLevel(logging.WARNING)
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        self._local = not uri
        self.place = f"at {uri}" if uri else f"`mlflow ui --backend-store-uri sqlite:///{run.local / _STORE}`"
        with open(run.local / _LOCK, "w") as file:
            while not lock(file):  # two arms that start together would make the tables at the same time
                time.sleep(0.1)
            self._client = tracking.MlflowClient(uri or f"sqlite:///{run.local / _STORE}")
            experiment = self._experiment(run)
        self.id = self._resumed(run) or self._new(run, experiment)
        self._client.log_dict(self.id, run.config, "config.json")
        self._last = None

    def _experiment(self, run: Tracked) -> str:
        """Returns the id of the project's experiment."""
        found = self._client.get_experiment_by_name(run.project)
        if found:
            return found.experiment_id
        artifacts = (run.local.resolve() / _ARTIFACTS).as_uri() if self._local else None
        return self._client.create_experiment(run.project, artifacts)

    def _resumed(self, run: Tracked) -> str | None:
        """Returns the id of a run that the store has, which is running again."""
        if run.id and any(run.id == found.info.run_id for found in self._search(run)):
            self._client.update_run(run.id, status="RUNNING")
            return run.id
        return None

    def _search(self, run: Tracked) -> list:
        experiment = self._client.get_experiment_by_name(run.project)
        return self._client.search_runs([experiment.experiment_id], f"attributes.run_id = '{run.id}'")

    def _new(self, run: Tracked, experiment: str) -> str:
        tags = {"group": run.group} if run.group else {}
        made = self._client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
        params = [
            self._entities.Param(name, json.dumps(value)[:_LONGEST_PARAM]) for name, value in fields(run.config).items()
        ]
        for start in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(made, params=params[start : start + _MOST_PARAMS])
        return made

    def begin(self, stage: str, restored: int, logged: int, sure: int) -> int:
        names = [name for name in self._client.get_run(self.id).data.metrics if name.startswith(f"{stage}/")]
        # A step is sent as one batch. Some metrics are those of a few steps, but not all of so many.
        histories = [self._client.get_metric_history(self.id, name) for name in sorted(names)[:8]]
        return max((point.step for history in histories for point in history), default=0)

    def metrics(self, stage: str, step: int, row: dict[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(_name(f"{stage}/{name}"), value, now, step) for name, value in row.items()]
        self._last = self._client.log_batch(self.id, metrics=metrics, synchronous=False)

    def samples(self, stage: str, step: int, columns: list[str], rows: list[list]) -> None:
        """Writes the table as an artifact, in the form of MLflow's own tables."""
        self._client.log_dict(self.id, {"columns": columns, "data": rows}, f"{_SAMPLES}/{stage}/{step:06}.json")

    def warning(self, stage: str, step: int, name: str, message: str) -> None:
        self._client.set_tag(self.id, _name(f"warning/{stage}/{name}"), f"step {step}: {message}"[:_LONGEST_TAG])

    def close(self, failed: bool) -> None:
        if self._last:
            self._last.wait()
        self._client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


def _name(text: str) -> str:
    """Returns a name without the characters that MLflow refuses."""
    return re.sub(r"[^\w\-. :/]", "_", text)
