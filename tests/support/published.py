"""What the tests of prepared datasets share: sources as published, made into datasets and read back."""

import gzip
import json

from rlhf_jax.config import data_config
from rlhf_jax.data import prepare, prepared
from rlhf_jax.data.corpus import FileCorpus
from rlhf_jax.data.public import DATASETS
from rlhf_jax.data.template import Template


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def made(dataset, source, out, **options):
    """-> (split -> rows, report) of a dataset prepared and read back."""
    folder, report = prepare.prepare(DATASETS[dataset], source, out, **options)
    return {split: list(rows) for split, rows in prepared.open_splits(folder).items()}, report


def corpus(folder, on_bad_row="error", **files):
    config = data_config().files
    config.update(dir=str(folder), **files)
    return FileCorpus(config, Template(), on_bad_row)
