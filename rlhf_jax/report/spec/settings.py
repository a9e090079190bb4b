"""Which overrides of a sweep's arms make its settings, and which belong to their seeds."""

import json
from collections.abc import Mapping, Sequence


def swept(arms: Sequence[Mapping], default_seed: int = 0) -> list[str]:
    """Returns the fields that the settings of a sweep differ in, in their order.

    A field whose value follows from the seed belongs to the seed, such as the data of each seed's own split. It can be
    told from a field that is swept only if some seed has several arms.

    Args:
      arms: the overrides of each arm.
      default_seed: the seed of arms that have none.
    """
    names = dict.fromkeys(name for arm in arms for name in arm if name != "seed")
    seeds = [arm.get("seed", default_seed) for arm in arms]
    if len(set(seeds)) in (1, len(seeds)):
        return list(names)
    return [name for name in names if not _follows(seeds, [json.dumps(arm.get(name)) for arm in arms])]


def _follows(seeds: Sequence[int], values: Sequence[str]) -> bool:
    """Whether values differ, and are the same in all arms of a seed."""
    return len(set(values)) > 1 and len(set(zip(seeds, values))) == len(set(seeds))
