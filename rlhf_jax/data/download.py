"""Downloads of the files of a public dataset: only when asked, only with a checksum."""

import hashlib
import pathlib
import sys
import urllib.request

from rlhf_jax.data.public import Dataset
from rlhf_jax.runtime.errors import InputError, reason
from rlhf_jax.runtime.files import replacing

_PIECE = 2**20
_SECONDS = 60


def fetch(dataset: Dataset, folder: pathlib.Path) -> None:
    """Downloads the files of a dataset that are not in `folder` yet; a file is there whole or not at all.

    Raises:
        InputError: no checksum is known, or a file cannot be downloaded or is not the one that was published.
    """
    if not dataset.downloads:
        raise InputError(
            f"--download: no checksum of the files of {dataset.name} is known here, so fetch "
            f"them yourself from {dataset.homepage} and give their folder as --source"
        )
    for file in dataset.downloads:
        path = folder / file.path
        if not path.exists():
            print(f"{file.url} -> {path}", file=sys.stderr, flush=True)
            _fetch(file.url, file.sha256, path)


def _fetch(url: str, sha256: str, path: pathlib.Path) -> None:
    digest = hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=_SECONDS) as response, replacing(path) as file:
            while piece := response.read(_PIECE):
                digest.update(piece)
                file.write(piece)
            if digest.hexdigest() != sha256:
                raise InputError(
                    f"{url}: the file has the SHA-256 {digest.hexdigest()} and not {sha256}, as published, so it is "
                    "not kept; try again later"
                )
    except OSError as error:  # of the network too: urllib's errors are OSErrors
        raise InputError(f"{url}: cannot be downloaded to {path} ({reason(error)})") from None
