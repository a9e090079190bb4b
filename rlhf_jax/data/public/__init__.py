"""Public datasets as published: one file per source or family, each with its DATASETS."""

from rlhf_jax.data.public import documents, hh_rlhf, instructions, oasst, questions, summarize
from rlhf_jax.data.public.dataset import Dataset, LeftOut

SOURCES = (hh_rlhf, summarize, questions, oasst, instructions, documents)

DATASETS: dict[str, Dataset] = {dataset.name: dataset for source in SOURCES for dataset in source.DATASETS}

__all__ = ["DATASETS", "Dataset", "LeftOut"]
