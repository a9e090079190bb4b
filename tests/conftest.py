"""Runs before any test module is imported: eight CPU devices, programs compiled once, fixed Hypothesis, shared data."""

import atexit
import functools
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile


def _set_flag(name, value):
    flags = os.environ.get("XLA_FLAGS", "")
    if name not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{name}={value}".strip()


os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "rlhf_jax_programs_" not in os.environ.get("JAX_COMPILATION_CACHE_DIR", ""):
    # What one process of this run has compiled, its other processes read: those of pytest-xdist, and the commands that
    # tests start. The user's own cache of programs is left alone.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="rlhf_jax_programs_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"  # as in runtime/programs.py
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
_set_flag("xla_force_host_platform_device_count", 8)
if os.environ["JAX_PLATFORMS"] == "cpu":
    # The tests' programs are small and run briefly: machine code that is not optimized is ready in 60 % of the time.
    _set_flag("xla_backend_optimization_level", 0)

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # in a shell's background: tests send it to commands that they start
    signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis
import pytest

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("repeatable")

_PROJECT = pathlib.Path(__file__).resolve().parent.parent


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem):
    """Ends the run when a test crashes its worker process: xdist 3.8 would wait forever for the rest of the file."""
    pytest.exit(f"{crashitem} crashed its worker process", returncode=3)


@pytest.fixture(scope="module", autouse=True)
def few_mapped_programs():
    """Drops compiled programs after a file when there are many: Linux lets a process map 65,530 pieces of memory.

    A program takes about a dozen, and a process that reaches the limit crashes.
    """
    yield
    mapped = pathlib.Path("/proc/self/maps")
    if mapped.exists() and mapped.read_bytes().count(b"\n") > 25_000:
        import gc

        import jax

        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session", autouse=True)
def tokenizers_trained_once():
    """Runs of one world train one tokenizer on the same 9,000 texts, which takes seconds: a process does it once."""
    from rlhf_jax.data.tokenizer import Tokenizer
    from rlhf_jax.world import World
    from rlhf_jax.world.corpus import WorldCorpus

    class Texts(tuple):
        """Those of a world."""

    train = Tokenizer.train
    texts_of = functools.cache(lambda seed: Texts(World(seed).texts_for_tokenizer()))
    train_once = functools.cache(train)

    def known(texts, vocab_size):
        return (train_once if isinstance(texts, Texts) else train)(texts, vocab_size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorldCorpus, "tokenizer_texts", lambda corpus: texts_of(corpus.world.seed))
        patch.setattr(Tokenizer, "train", known)
        yield


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real data beside the project; tests that need it skip where it is missing."""
    path = pathlib.Path(os.environ.get("RLHF_JAX_SHARED_DATA", _PROJECT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no real data: {path} is missing (RLHF_JAX_SHARED_DATA names another place)")
    return path


@pytest.fixture(scope="session")
def released_chat_model() -> pathlib.Path:
    """The Hugging Face folder of SmolLM2-135M-Instruct; tests that need it skip where it is missing."""
    place = pathlib.Path.home() / ".cache" / "rlhf_jax" / "SmolLM2-135M-Instruct"
    path = pathlib.Path(os.environ.get("RLHF_JAX_SMOLLM2", place))
    if not (path / "model.safetensors").is_file():
        pytest.skip(f"no released chat model: {path} is missing (RLHF_JAX_SMOLLM2 names another place)")
    return path


@pytest.fixture
def disk_of(tmp_path):
    """size, such as '3m' -> a folder on a file system of that size; skips where that needs root."""
    folder = tmp_path / "disk"

    def mount(size):
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            folder.rmdir()
            pytest.skip("mounting a small file system needs root")
        return folder

    yield mount
    if folder.is_dir():
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def simply_compiled():
    """Programs of one device are compiled simply; none that was compiled before or after is one of them."""
    import compiling
    import jax

    jax.clear_caches()
    with compiling.simply_up_to(1):
        yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def one_device(simply_compiled):
    """A mesh of one device, whose programs are compiled simply."""
    import jax

    from rlhf_jax import sharding

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", functools.partial(sharding.make_mesh, devices=jax.devices()[:1]))
        yield


@pytest.fixture
def parameters_in_memory(monkeypatch):
    """Lets a run that has methods `load_params` or `sampler` of its own give its models and their samples."""
    from rlhf_jax import sampling, weights

    def own(module, name):
        usual = getattr(module, name)

        def ask(run, *given, **named):
            return (getattr(run, name) if hasattr(run, name) else functools.partial(usual, run))(*given, **named)

        monkeypatch.setattr(module, name, ask)

    own(weights, "load_params")
    own(sampling, "sampler")
