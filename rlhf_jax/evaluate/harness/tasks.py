"""The tasks of lm-eval: found by name, loaded, and run with a backend. lm-eval is imported here, when it is needed."""

import contextlib
import difflib
import fnmatch
import functools
import importlib.util
import json
import logging
import pathlib
import random
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.evaluate.harness.backend import Backend
from rlhf_jax.runtime.errors import InputError, reason

_FEWSHOT_SEED, _NUMPY_SEED = 1234, 1234  # lm-eval's own, so that both draw the same examples


class Options(NamedTuple):
    """How tasks are asked; each is lm-eval's option of the same name.

    Attributes:
        num_fewshot: number of solved examples before each question; None: as the task says.
        limit: number of questions of each task; None: all.
        apply_chat_template: whether questions are turns of a chat.
        system_instruction: text of the system's turn, or the text before a prompt.
        fewshot_as_multiturn: whether solved examples are turns of their own.
        gen_kwargs: settings of completions that take the place of a task's own.
    """

    num_fewshot: int | None = None
    limit: int | None = None
    apply_chat_template: bool = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = False
    gen_kwargs: dict[str, Any] | None = None


def need_lm_eval() -> None:
    """Raises InputError if lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("benchmarks need lm-eval: pip install 'rlhf_jax[eval]', or in a checkout EXTRAS=eval")


class Tasks:
    """Tasks, ready to be asked.

    Args:
        names: names of tasks, groups or tags, patterns such as mmlu_*, or paths of task files.
        folders: folders with task files of one's own.
        metadata: what tasks get to know besides, such as the folder of their data.
        download: whether data may be fetched from the hub.

    Attributes:
        loaded: what lm-eval's TaskManager loads.

    Raises:
        InputError: lm-eval is missing, a task is unknown, or its data cannot be read.
    """

    def __init__(
        self,
        names: Sequence[str],
        folders: Sequence[str] = (),
        metadata: dict[str, Any] | None = None,
        download: bool = False,
    ):
        for folder in folders:
            if not pathlib.Path(folder).is_dir():
                raise InputError(f"--include={folder} is no folder of task files")
        need_lm_eval()
        about = json.dumps(metadata or {}, sort_keys=True)
        # To read the files of all of lm-eval's tasks takes seconds, which one's own tasks do not need.
        manager = _manager(tuple(folders), about, False)
        if not all(name in manager.all_tasks or pathlib.Path(name).is_file() for name in names):
            manager = _manager(tuple(folders), about, True)
        self.loaded: dict[str, dict] = {"tasks": {}, "groups": {}, "group_map": {}}
        with _quiet(), _network(download):
            for name in _matching(names, manager.all_tasks):
                for part, found in _load(manager, name, download).items():
                    self.loaded.setdefault(part, {}).update(found)

    @property
    def names(self) -> list[str]:
        """The names of the tasks, without those of groups."""
        return list(self.loaded["tasks"])

    def aggregation(self, name: str, metric: str):
        """Returns the function that turns the values of a metric, one for each item, into the result."""
        return self.loaded["tasks"][name].aggregation().get(metric)

    def run(self, backend: Backend, options: Options = Options()) -> dict[str, Any]:
        """Asks the backend everything, and returns what lm_eval.evaluator.evaluate returns."""
        evaluator = importlib.import_module("lm_eval.evaluator")
        importlib.import_module("lm_eval.api.model").LM.register(Backend)
        # As lm_eval.evaluator.simple_evaluate, which takes names only, and no torch generator is ours.
        random.seed(0)
        np.random.seed(_NUMPY_SEED)
        for task in self.loaded["tasks"].values():
            if task.get_config("output_type") == "generate_until" and options.gen_kwargs:
                task.set_config(key="generation_kwargs", value=dict(options.gen_kwargs), update=True)
            fewshot = task.get_config("num_fewshot")
            if fewshot is None or options.num_fewshot is not None and fewshot != 0:
                task.set_config(key="num_fewshot", value=options.num_fewshot or 0)
            task.set_fewshot_seed(seed=_FEWSHOT_SEED)
        with _quiet():
            try:
                return evaluator.evaluate(
                    backend,
                    self.loaded,
                    limit=options.limit,
                    bootstrap_iters=0,  # results.py has the intervals
                    system_instruction=options.system_instruction,
                    apply_chat_template=options.apply_chat_template,
                    fewshot_as_multiturn=options.fewshot_as_multiturn,
                )
            except ValueError as error:
                if "unsafe" in str(error):
                    raise InputError(f"{error}; tasks that run code which a model wrote are not run here") from None
                raise


def known(folders: Sequence[str] = ()) -> list[str]:
    """Returns the names of all tasks, groups and tags."""
    need_lm_eval()
    return list(_manager(tuple(folders), "{}", True).all_tasks)


@functools.lru_cache(maxsize=4)
def _manager(folders: tuple[str, ...], metadata: str, all_tasks: bool):
    """Returns a TaskManager of lm-eval, with the tasks of lm-eval or those of `folders` alone."""
    with _quiet():
        return importlib.import_module("lm_eval.tasks").TaskManager(
            include_path=list(folders) or None, include_defaults=all_tasks, metadata=json.loads(metadata)
        )


def _matching(names: Sequence[str], all_names: Sequence[str]) -> Iterator[str]:
    """Yields the names that are meant; raises InputError for one that is unknown."""
    for name in names:
        if name in all_names or name.endswith((".yaml", ".yml")) and pathlib.Path(name).is_file():
            yield name
        elif found := fnmatch.filter(all_names, name) if set(name) & set("*?[") else []:
            yield from found
        else:
            near = difflib.get_close_matches(name, all_names, n=3)
            raise InputError(
                f"--tasks={name} is no task of lm-eval, nor a file{f'; near it are {chr(44).join(near)}' if near else ''}; "
                "--tasks=list prints all names, and --include=FOLDER adds tasks of your own"
            )


def _load(manager, name: str, download: bool) -> dict[str, dict]:
    """Loads a task with its data; an error of any kind becomes one sentence, because it may come from any library."""
    try:
        return manager.load([name])
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001
        hint = "" if download else "; --download lets lm-eval fetch data from the Hugging Face hub"
        said = (reason(error) or type(error).__name__).strip().splitlines()[0]
        raise InputError(f"--tasks={name}: the task or its data cannot be read ({said}){hint}") from None


@contextlib.contextmanager
def _network(allowed: bool) -> Iterator[None]:
    """Keeps the libraries under lm-eval from the network, unless the user asked for it."""
    if allowed:
        yield
        return
    datasets = importlib.import_module("datasets")
    import huggingface_hub.constants

    places = [(datasets.config, "HF_HUB_OFFLINE"), (huggingface_hub.constants, "HF_HUB_OFFLINE")]
    places = [(module, name) for module, name in places if hasattr(module, name)]
    before = [getattr(module, name) for module, name in places]
    for module, name in places:
        setattr(module, name, True)
    try:
        yield
    finally:
        for (module, name), value in zip(places, before):
            setattr(module, name, value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps lm-eval and the libraries under it from printing: their bars and notes are not about this command."""
    datasets, tqdm = importlib.import_module("datasets"), importlib.import_module("tqdm")

    loggers = {name: logging.getLogger(name).level for name in ("lm_eval", "datasets", "absl")}
    start, bars = tqdm.tqdm.__init__, datasets.is_progress_bar_enabled()
    tqdm.tqdm.__init__ = functools.partialmethod(start, disable=True)  # bars ask no setting that could change now
    datasets.disable_progress_bars()
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in loggers.items():
            logging.getLogger(name).setLevel(level)
        tqdm.tqdm.__init__ = start
        if bars:
            datasets.enable_progress_bars()
