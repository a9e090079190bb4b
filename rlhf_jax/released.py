"""Models in the files of others: folders of released weights, and adapters that PEFT has written.

They answer the questions that every source of a model answers; see sources.py.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
from typing import Any

from rlhf_jax import hf, lora
from rlhf_jax.data.files import checksum
from rlhf_jax.hf import adapters
from rlhf_jax.lora import Lora
from rlhf_jax.model import TransformerConfig
from rlhf_jax.runtime import progress
from rlhf_jax.runtime.errors import InputError

_LARGE = 10**9  # bytes: reading more takes so long that it needs a progress bar


@dataclasses.dataclass(frozen=True)
class Released:
    """A folder of released weights."""

    folder: pathlib.Path

    @property
    def label(self) -> str:
        """The model's name in tables and metrics."""
        return self.folder.name

    @property
    def head(self) -> str:
        """The model's head, "lm" or "scalar"."""
        return hf.head_of(self.folder)

    @property
    def tokenizer_folder(self) -> pathlib.Path:
        """The folder with the model's tokenizer; it may have none."""
        return self.folder

    @property
    def lora(self) -> None:
        """There are no adapters."""
        return None

    @property
    def base(self) -> "Released":
        """The source itself, as the weights are whole."""
        return self

    def shape(self, **program: Any) -> TransformerConfig:
        """Returns the model's shape; `program` are the fields that a released model does not decide."""
        return hf.load_config(self.folder, **program)

    def params(self, shape: TransformerConfig, shardings, head: str, dtype: str = "float32") -> dict:
        """Returns the parameters of a dtype, placed by `shardings`, for a `shape` of the model's architecture."""
        return hf.load_params(self.folder, shape, shardings, head, dtype)

    def checksum(self) -> str:
        """Returns a SHA-256 of config.json and the tensors: another model has another one."""
        paths = sorted((self.folder / "config.json", *self.folder.glob("*.safetensors")))
        return _digest(tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths))


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A folder with an adapter in the files of PEFT."""

    folder: pathlib.Path

    @property
    def label(self) -> str:
        """The model's name in tables and metrics."""
        return self.folder.name

    @functools.cached_property
    def settings(self) -> adapters.Settings:
        """What its adapter_config.json says."""
        return adapters.read_settings(self.folder)

    @property
    def head(self) -> str:
        """The model's head, "lm" or "scalar"."""
        return self.settings.head

    @property
    def lora(self) -> Lora:
        """The settings of the adapters."""
        return adapters.read_lora(self.folder, self.base.shape())

    @property
    def base(self) -> Released:
        """The released model that the adapter belongs to.

        Raises:
          InputError: the name in adapter_config.json is no folder of released weights on this machine.
        """
        for place in (self.folder, self.folder.parent, "."):
            folder = pathlib.Path(os.path.abspath(pathlib.Path(place, self.settings.base)))
            if (folder / "config.json").is_file():
                return Released(folder)
        raise InputError(
            f"{self.folder / adapters.CONFIG}: base_model_name_or_path names '{self.settings.base}', which is no folder of "
            "released weights here: get that model (python -m rlhf_jax.hf import NAME DIR --hub) and write its folder there"
        )

    @property
    def tokenizer_folder(self) -> pathlib.Path:
        """The folder with the model's tokenizer: the adapter's own, or else the base's."""
        return self.folder if (self.folder / "tokenizer.json").is_file() else self.base.folder

    def shape(self, **program: Any) -> TransformerConfig:
        """Returns the model's shape; `program` are the fields that a released model does not decide."""
        return self.base.shape(**{"lora": self.lora} | program)

    def params(self, shape: TransformerConfig, shardings, head: str, dtype: str = "float32") -> dict:
        """Returns the adapters alone, float32, with the scalar head, for a `shape` that has them."""
        return adapters.load_params(self.folder, shape, lora.trained(shardings), head)

    def checksum(self) -> str:
        """Returns a SHA-256 of the adapter's files: another adapter has another one."""
        paths = (self.folder / adapters.CONFIG, self.folder / adapters.WEIGHTS)
        return _digest(tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths))


@functools.lru_cache(maxsize=256)
def _digest(files: tuple[tuple[str, int, int], ...]) -> str:
    """Returns a SHA-256 of the contents of files, given as (path, size, time of the last change)."""
    found = hashlib.sha256()
    name, large = pathlib.Path(files[0][0]).parent.name, sum(size for _, size, _ in files) > _LARGE
    with progress.Progress(f"checksum of {name}", len(files)) if large else contextlib.nullcontext() as bar:
        for number, (path, *_) in enumerate(files, start=1):
            found.update(f"{pathlib.Path(path).name} {checksum(path)}\n".encode())
            if bar:
                bar.update(number)
    return found.hexdigest()
