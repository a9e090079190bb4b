"""Readers of what trackers keep: each returns {"steps": {stage: {metric: [(step, value)]}}, "config", "samples", ...}.

A reader sees what the tracker's own pages see: values as they are stored, once for each time they are stored.
"""

import dataclasses
import json
import pathlib
import struct
import types


@dataclasses.dataclass
class Kept:
    """A run, as a tracker keeps it.

    Attributes:
      points: metric with its stage before it -> (step, value) of each point.
      config: fields of the config by which to recognise it.
      tables: (metric, step, columns, rows) of each table.
      warnings: texts of the warnings.
      name, group: of the run.
      parts: number of separate files or folders that hold it.
    """

    points: dict = dataclasses.field(default_factory=dict)
    config: dict = dataclasses.field(default_factory=dict)
    tables: list = dataclasses.field(default_factory=list)
    warnings: list = dataclasses.field(default_factory=list)
    name: str = ""
    group: str | None = None
    parts: int = 1

    def add(self, metric: str, step: int, value: float) -> None:
        self.points.setdefault(metric, []).append((step, value))


def of_wandb(local: pathlib.Path, path: pathlib.Path, project: str) -> Kept:
    """Reads the transaction logs of the offline folders: LevelDB's log format, of W&B's own records."""
    from wandb.proto import wandb_internal_pb2

    found, ids, numbers = Kept(), set(), []
    logs = sorted((local / "wandb").glob("offline-run-*/*.wandb"))
    for log in logs:
        for content in _leveldb(log.read_bytes()[7:]):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                ids.add(record.run.run_id)
                found.name, found.group = record.run.display_name, record.run.run_group or None
                assert record.run.project == project
                found.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif kind == "history":
                items = {(item.key or "/".join(item.nested_key)): item.value_json for item in record.history.item}
                row = {name: json.loads(value) for name, value in items.items()}
                numbers.append(row["_step"])
                _add_wandb_row(found, row, log.parent / "files")
            elif kind == "alert":
                found.warnings.append(record.alert.text)
    assert len(ids) <= 1, "each part is the same run"
    assert numbers == sorted(set(numbers)), "the numbers of W&B's rows only rise, over all parts"
    found.parts = len(logs)
    return found


def _add_wandb_row(found: Kept, row: dict, files: pathlib.Path) -> None:
    steps = {name.removesuffix("/step"): value for name, value in row.items() if name.count("/") == 1}
    for name, value in row.items():
        stage = name.partition("/")[0]
        if isinstance(value, (int, float)) and "/samples/" not in name and name != f"{stage}/step" and "/" in name:
            found.add(name, steps[stage], value)
        elif name.endswith("/samples/path"):
            table = json.loads((files / value).read_text())
            found.tables.append((name.removesuffix("/path"), steps[stage], table["columns"], table["data"]))


def _leveldb(data: bytes):
    """Yields the records of a log: blocks of 32 KiB, in which the first log's header of 7 bytes counts."""
    at, whole = 7, b""
    data = b"\0" * 7 + data
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        if kind == 0:
            return
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield whole
            whole = b""


def of_trackio(local: pathlib.Path, path: pathlib.Path, project: str) -> Kept:
    """Reads the run of a name with Trackio's own Api."""
    import trackio

    [run] = [run for run in trackio.Api().runs(project) if run.name == path.name]
    found = Kept(name=run.name, group=run.config["_Group"], config=run.config)
    for row in trackio.SQLiteStorage.get_logs(project, run.name, run_id=run.id):
        for name, value in row.items():
            if isinstance(value, dict):
                columns = list(value["_value"][0])
                table = [[cells[column] for column in columns] for cells in value["_value"]]
                found.tables.append((name, row["step"], columns, table))
            elif "/" in name:
                found.add(name, row["step"], value)
    found.warnings = [alert["text"] for alert in run.alerts()]
    return found


def of_tensorboard(local: pathlib.Path, path: pathlib.Path, project: str) -> Kept:
    """Reads the event files as TensorBoard does: an event that starts a session drops those at its step and later."""
    from tensorboardX.proto import event_pb2

    found = Kept(name=path.name)
    for folder in sorted(path.glob("*/tensorboard")):
        events = []
        for file in sorted(folder.iterdir()):
            data, at = file.read_bytes(), 0
            while at + 12 <= len(data):
                [size] = struct.unpack_from("<Q", data, at)
                event = event_pb2.Event()
                event.ParseFromString(data[at + 12 : at + 12 + size])
                at += size + 16
                if event.session_log.status == event.session_log.START:
                    events = [earlier for earlier in events if earlier.step < event.step]
                events.append(event)
        for event in events:
            for value in event.summary.value:
                tag, texts = value.tag, [text.decode() for text in value.tensor.string_val]
                if value.WhichOneof("value") == "simple_value":
                    found.add(f"{folder.parent.name}/{tag}", event.step, value.simple_value)
                elif tag.startswith("config"):
                    found.config = json.loads(texts[0])
                elif tag.startswith("samples"):
                    lines = [line.strip("|").split("|") for line in texts[0].splitlines()]
                    found.tables.append((f"{folder.parent.name}/samples", event.step, lines[0], lines[2:]))
                elif tag.startswith("warnings/"):
                    found.warnings += texts
    return found


def of_mlflow(local: pathlib.Path, path: pathlib.Path, project: str) -> Kept:
    """Reads the store with MLflow's own client."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{local / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(project).experiment_id
    [run] = [run for run in client.search_runs([experiment]) if run.info.run_name == path.name]
    tags, params = run.data.tags, run.data.params
    found = Kept(name=run.info.run_name, group=tags.get("group"))
    found.config = {name: json.loads(value) for name, value in params.items() if "." not in name}
    for name in run.data.metrics:
        for point in sorted(client.get_metric_history(run.info.run_id, name), key=lambda point: point.step):
            found.add(name, point.step, point.value)
    for file in sorted((local / "mlflow").glob(f"{run.info.run_id}/artifacts/samples/*/*.json")):
        table = json.loads(file.read_text())
        found.tables.append((f"{file.parent.name}/samples", int(file.stem), table["columns"], table["data"]))
    found.warnings = [value for name, value in tags.items() if name.startswith("warning/")]
    return found


READERS = types.MappingProxyType(
    {"wandb": of_wandb, "trackio": of_trackio, "tensorboard": of_tensorboard, "mlflow": of_mlflow}
)
