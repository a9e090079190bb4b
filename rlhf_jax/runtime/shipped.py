"""Finds files that ship with the project beside its package: experiments/ and launch/, in a checkout or installed."""

import pathlib
import sysconfig

_ROOTS = (pathlib.Path(__file__).resolve().parents[2], pathlib.Path(sysconfig.get_path("data"), "share", "rlhf_jax"))


def find(path: str) -> pathlib.Path:
    """Returns the path of a file such as experiments/quickstart.py, in the first place that has it.

    The places are the current directory, the checkout that this package is imported from, and the data folder of an
    installation, in this order. A path that is in none of them is returned unchanged.
    """
    given = pathlib.Path(path)
    places = [given, *(root / given for root in _ROOTS)]
    return next((place for place in places if place.is_file()), given)


def experiment(name: str) -> pathlib.Path:
    """Returns the file of an experiment, given as a path or by name.

    The name figures/rm_pairs stands for experiments/figures/rm_pairs.py.
    """
    found = find(name)
    return found if found.is_file() else next(filter(pathlib.Path.is_file, [find(f"experiments/{name}.py")]), found)


def experiments() -> list[str]:
    """Returns the names of the experiment files that ship, such as experiments/quickstart.py."""
    return [
        file.relative_to(folder.parent).as_posix()
        for folder in folders("experiments")
        for file in sorted(folder.rglob("*.py"))
    ]


def folders(path: str) -> list[pathlib.Path]:
    """Returns the folder of the checkout or of the installation that ships under a path; [] if there is none."""
    places = [root / path for root in _ROOTS]
    return [place for place in places if place.is_dir()][:1]
