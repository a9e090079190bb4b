"""Datasets of instructions with answers: Alpaca and Dolly. The run's template renders the instructions."""

from collections.abc import Iterator

from rlhf_jax.data.public.dataset import Dataset, Download, Row, filled, text

_COLUMNS = {"instruction": "text", "input": "text", "output": "text"}


def _alpaca(row: Row, file: str) -> Iterator[Row]:
    yield {"instruction": filled(row, "instruction"), "input": text(row, "input"), "output": filled(row, "output")}


def _dolly(row: Row, file: str) -> Iterator[Row]:
    yield {
        "instruction": filled(row, "instruction"),
        "input": text(row, "context"),
        "output": filled(row, "response"),
        "category": text(row, "category"),
    }


DATASETS = (
    Dataset(
        name="alpaca",
        kind="demonstrations",
        about="Stanford: instructions and answers by text-davinci-003",
        homepage="https://github.com/tatsu-lab/stanford_alpaca",
        files={"train": ("alpaca_data|data/train-*",)},
        convert=_alpaca,
        columns=_COLUMNS,
    ),
    Dataset(
        name="dolly",
        kind="demonstrations",
        about="Databricks: 15,000 instructions and answers by employees",
        homepage="https://huggingface.co/datasets/databricks/databricks-dolly-15k",
        files={"train": ("databricks-dolly-15k",)},
        convert=_dolly,
        columns={**_COLUMNS, "category": "text"},
        # TFDS pins the same checksum for this file.
        downloads=(
            Download(
                "databricks-dolly-15k.jsonl",
                "https://github.com/databrickslabs/dolly/raw/master/data/databricks-dolly-15k.jsonl",
                "e442d96b320010510c67a6cc0a86ea988a2a6f71c7570d1afbdf4fa631896e58",
            ),
        ),
    ),
)
