"""The best weights of a stage so far, kept in its output folder while it trains."""

from rlhf_jax import weights
from rlhf_jax.run import Run
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.files import read_if_there, read_json, write_json

_FIELDS = ("step", "by", "value", "before")  # of selection.json


class Selection:
    """Keeps the weights of the best validation of a stage.

    selection.json has the step, the name and the value of what decided, and the record that was there before. A resumed
    run repeats the steps after its checkpoint, and then compares with what had been the best by that step.

    Args:
      run: the run.
      stage: name of the stage.
      by: name of the number that is compared.
      highest: whether the highest number is the best, and not the lowest.
    """

    def __init__(self, run: Run, stage: str, by: str, highest: bool):
        self._run, self._stage, self._by, self._highest = run, stage, by, highest
        self._record = run.folder(stage) / "selection.json"

    def offer(self, params: dict, step: int, value: float) -> None:
        """Keeps weights if they are better than the best so far; of equal ones, the first stay.

        Args:
          params: whole parameters of a language model.
          step: the step after which the stage has them.
          value: the number that is compared.
        """
        best = hosts.on_first(read_if_there, self._record, dict, _FIELDS)
        while best and best["step"] >= step:  # recorded after the checkpoint that this run was resumed from
            best = best["before"]
        if best is None or (value > best["value"] if self._highest else value < best["value"]):
            weights.save_params(self._run, self._stage, params)
            record = {"step": step, "by": self._by, "value": value, "before": best}
            hosts.on_first(write_json, self._record, record)

    def chosen(self) -> dict:
        """Returns the record of the weights that are kept: "step", "by" and "value"."""
        return hosts.on_first(read_json, self._record, dict, _FIELDS)
