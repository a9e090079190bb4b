"""What a run notes of the files that it reads, in data_report.json, so that a later start finds those that have changed.

These are the data files, the tokenizer and the template, and the models that the run uses and has not trained. The same
file says what became of the data (see inputs.py).
"""

import pathlib

from rlhf_jax import sources
from rlhf_jax.data import tokenizer_files
from rlhf_jax.data.corpus import FileCorpus
from rlhf_jax.data.files import checksum
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_if_there, write_json
from rlhf_jax.world.corpus import WorldCorpus

REPORT = "data_report.json"
KEPT = ("template.txt", *tokenizer_files.FILES)  # how a run reads and writes text, all its life


def check_data(path: pathlib.Path, corpus: FileCorpus | WorldCorpus) -> None:
    """Keeps the checksums of the data files; at a resume, they must be the same."""
    ours = corpus.checksums
    before = _noted(path, "checksums")
    if said := before is not None and _changes(before, ours):
        raise InputError(
            f"the data files were changed after this run began ({said}): put back the old files, or give another "
            "--workdir to begin a run with these"
        )
    if ours and before is None:
        _note(path, "checksums", ours)


def models_used(path: pathlib.Path) -> dict[str, dict]:
    """Returns {"folder", "checksum"} of each model that the run in a directory has used and not trained, by its name."""
    return _noted(path, "models") or {}


def note_models(path: pathlib.Path, used: dict[str, sources.Source]) -> None:
    """Keeps where the models lie that a run uses and has not trained, with their checksums.

    Raises:
      InputError: a model is another one than when the run began to use it.
    """
    before = dict(models_used(path))
    for name, source in used.items():
        now = {"folder": str(source.folder), "checksum": source.checksum()}
        if name in before and before[name].get("checksum") != now["checksum"]:
            raise InputError(
                f"{source.folder} ('{name}') was changed after this run began to use it: put back the model as it was, "
                "or give another --workdir to begin a run with this one"
            )
        before[name] = now
    if before != models_used(path):
        _note(path, "models", before)


def _noted(path: pathlib.Path, name: str) -> dict[str, str] | None:
    """What a run has noted under this name; None in a run that has none yet, or is of an earlier version."""
    report = path / REPORT
    found = (read_if_there(report) or {}).get(name)
    if not isinstance(found, dict | None):
        raise InputError(
            f"{report} is damaged: '{name}' must be an object of files and their checksums; put it back as it was"
        )
    return found


def _note(path: pathlib.Path, name: str, checksums: dict[str, str]) -> None:
    facts = read_if_there(path / REPORT) or {}
    write_json(path / REPORT, {"files": {}, "stages": {}} | facts | {name: checksums})


def _changes(before: dict, now: dict) -> str:
    """What has become of files, by their checksums; "" where all are as they were."""
    differ = {
        name: "is gone" if name not in now else "is new" if name not in before else "was changed"
        for name in sorted(before | now)
        if before.get(name) != now.get(name)
    }
    return ", ".join(f"{name} {what}" for name, what in list(differ.items())[:5]) + ", ..." * (len(differ) > 5)


def _kept(path: pathlib.Path) -> dict[str, str]:
    return {name: checksum(path / name) for name in KEPT if (path / name).is_file()}


def note_kept(path: pathlib.Path) -> None:
    """Keeps the checksums of tokenizer and template, once."""
    if _noted(path, "kept") is None:
        _note(path, "kept", _kept(path))
    check_kept(path)


def check_kept(path: pathlib.Path) -> None:
    """Raises InputError where tokenizer or template are not those with which the run began.

    Where there is no tokenizer.json, a start makes the tokenizer anew, and it is checked after that.
    """
    before, now = _noted(path, "kept"), _kept(path)
    if tokenizer_files.TOKENIZER in now and before is not None and (said := _changes(before, now)):
        raise InputError(
            f"{path}: the tokenizer or the template was changed after this run began ({said}): put back the old files, "
            "or give another --workdir to begin a run with these"
        )
