"""Datasets of text for pretraining: C4, Wikipedia, OpenWebText, or any folder of text."""

from collections.abc import Iterator

from rlhf_jax.data.public.dataset import Dataset, Row, filled, text


def _document(*others: str):
    """Returns a converter of rows with the field `text`, which also keeps other text fields."""

    def convert(row: Row, file: str) -> Iterator[Row]:
        yield {"text": filled(row, "text"), **{name: text(row, name) for name in others}}

    return convert


_SHARDS = "train-*|data/train-*|*/train-*"

DATASETS = (
    Dataset(
        name="c4",
        kind="documents",
        about="AllenAI: C4, pages of the web",
        homepage="https://huggingface.co/datasets/allenai/c4",
        files={"train": ("c4-train*|*/c4-train*",), "valid": ("c4-validation*|*/c4-validation*|",)},
        convert=_document("url"),
        columns={"text": "text", "url": "text"},
    ),
    Dataset(
        name="wikipedia",
        kind="documents",
        about="Wikimedia: Wikipedia's articles of one language and date",
        homepage="https://huggingface.co/datasets/wikimedia/wikipedia",
        files={"train": (_SHARDS,)},
        convert=_document("title", "url"),
        columns={"text": "text", "title": "text", "url": "text"},
    ),
    Dataset(
        name="openwebtext",
        kind="documents",
        about="OpenWebText: pages that Reddit linked to",
        homepage="https://huggingface.co/datasets/Skylion007/openwebtext",
        files={"train": (_SHARDS,)},
        convert=_document(),
        columns={"text": "text"},
    ),
    Dataset(
        name="text",
        kind="documents",
        about="any folder of .txt, or of tables with a field `text`",
        homepage="",
        files={"train": ("**/*",)},
        convert=_document(),
        columns={"text": "text"},
    ),
)
