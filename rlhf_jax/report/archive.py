"""The archive of a published sweep: what its report read of the arms, in one small file beside the report.

    mkdir -p runs/figures/NAME && tar xf docs/reproduction/NAME/arms.tar.xz -C runs/figures/NAME

makes a folder that `rlhf_jax.report` and `rlhf_jax.sweep` read like the sweep's own. The report is made again from it, other
claims can be judged by the same arms, and `--until-decided` goes on where the sweep stopped: the arms that were done stay
done. The archive has no weights and no completions, so a report that is made from it does not split the variance.
"""

import io
import pathlib
import tarfile

from rlhf_jax.report.sweep_report import Sweep
from rlhf_jax.report.verdicts import looks
from rlhf_jax.runtime.files import json_text, replacing
from rlhf_jax.runtime.markdown import code

NAME = "arms.tar.xz"
_LARGE = ("samples.jsonl", "skills.jsonl")  # completions, which only the split of the variance reads
_OF_A_MACHINE = ("host", "job")  # what arm.json says of the machine that nobody else has


def section(name: str) -> str:
    """Returns the section of a published report that says what to do with the archive of the sweep of this name."""
    folder = f"runs/figures/{name}"
    unpack = f"mkdir -p {folder}\ntar xf docs/reproduction/{name}/{NAME} -C {folder}"
    return (
        f"## How to go on from these arms\n\n[{NAME}]({NAME}) has the numbers of all arms that this report was made from, without "
        "weights and completions. Unpack it, and the commands above find these arms done:\n\n" + code(unpack) + "\n"
    )


def write(sweep: Sweep, path: pathlib.Path) -> None:
    """Writes the archive of a sweep, with the arms that have ended; the same files always give the same bytes.

    Args:
      sweep: a sweep whose report has been made: the archive has the files that it read.
      path: the file to write.
    """
    found = {
        file.name: file.read_bytes() for file in (sweep.path / "sweep.json", sweep.path / looks.FILE) if file.exists()
    }
    ended = {arm.path: arm for arm in sweep.arms if arm.ended}
    for arm in ended.values():
        facts = {name: value for name, value in arm.facts.items() if name not in _OF_A_MACHINE}
        found[f"arms/{arm.name}/arm.json"] = json_text(facts).encode()
    for file in sweep.files_read:
        if file.parent.parent in ended and file.name not in _LARGE and file.is_file():
            found[file.relative_to(sweep.path).as_posix()] = file.read_bytes()
    # Files of one name stand together, because what is alike compresses better so.
    names = sorted(found, key=lambda name: (pathlib.PurePath(name).name, name))
    with replacing(path) as file, tarfile.open(fileobj=file, mode="w:xz", preset=9) as packed:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = len(found[name])
            packed.addfile(entry, io.BytesIO(found[name]))
