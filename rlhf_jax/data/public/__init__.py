"""Public datasets in the form in which they are published; each module here has the DATASETS of a source or family."""

from rlhf_jax.data.public import documents, hh_rlhf, instructions, oasst, questions, summarize
from rlhf_jax.data.public.dataset import Dataset, LeftOut

SOURCES = (hh_rlhf, summarize, questions, oasst, instructions, documents)

DATASETS: dict[str, Dataset] = {dataset.name: dataset for source in SOURCES for dataset in source.DATASETS}

__all__ = ["DATASETS", "Dataset", "LeftOut"]
