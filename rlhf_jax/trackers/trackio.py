"""Trackio: a run for a work directory, in Trackio's own folder, where its dashboard finds those of all work directories.

The metrics of a stage have its name before theirs (`ppo/objective/kl`), at the stage's own steps: Trackio draws each
metric over the steps that were logged with it, so that stages need no runs of their own. `trackio show` is the
dashboard. TRACKIO_DIR names another folder; TRACKIO_SPACE_ID or TRACKIO_SERVER_URL sends the runs to a Space or a server.

A resumed run asks Trackio for the last step of the stage that it has, and logs those after it: none is there twice. Of a
Space or a server it does not ask, and leaves out the steps that were logged before.
"""

import contextlib
import contextvars
import io
import os

from rlhf_jax.trackers.tracker import Tracked, Tracker, load

_REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


def package():
    """Returns the package."""
    return load(["trackio"])


class Trackio(Tracker):
    """See the top of the file."""

    def __init__(self, run: Tracked):
        self._package, self._project, self._name = package(), run.project, run.name
        self._remote = next((os.environ[name] for name in _REMOTE if os.environ.get(name)), None)
        with _quiet():
            # Another context, because Trackio ends the run that it finds in the present one.
            self._run = contextvars.Context().run(self._open, run)
        self.id = self._run.id
        self.place = f"at {self._remote}" if self._remote else f'`trackio show --project "{run.project}"`'

    def _open(self, run: Tracked):
        if self._remote:
            return self._package.init(
                run.project, run.name, run.group, config=run.config, resume="allow", embed=False, auto_log_cpu=False
            )
        self._package.SQLiteStorage.validate_project_name(run.project)
        # trackio.init finds a run by its name alone, and two work directories may have the same; this goes by the id.
        local = type("Local", (self._package.Run,), {"_get_username": lambda _: None})  # it asks the Hugging Face hub
        return local(None, run.project, None, name=run.name, run_id=run.id, group=run.group, config=run.config)

    def begin(self, stage: str, restored: int, logged: int, sure: int) -> int:
        if self._remote:
            return logged
        rows = self._package.SQLiteStorage.get_logs(self._project, self._name, run_id=self.id, scalar_only=True)
        return max((row["step"] for row in rows if any(name.startswith(f"{stage}/") for name in row)), default=0)

    def metrics(self, stage: str, step: int, row: dict[str, float]) -> None:
        self._run.log({f"{stage}/{name}": value for name, value in row.items()}, step=step)

    def samples(self, stage: str, step: int, columns: list[str], rows: list[list]) -> None:
        self._run.log({f"{stage}/samples": self._package.Table(columns=columns, data=rows)}, step=step)

    def warning(self, stage: str, step: int, name: str, message: str) -> None:
        """Raises an alert of Trackio, which its dashboard lists and which TRACKIO_WEBHOOK_URL, if set, receives."""
        with _quiet():
            self._run.alert(f"{name} ({stage})", message, self._package.AlertLevel.WARN, step=step)

    def close(self, failed: bool) -> None:
        with _quiet():
            self._run.finish()


@contextlib.contextmanager
def _quiet():
    """Keeps what Trackio prints from the terminal, where the run shows its progress."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
