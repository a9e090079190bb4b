"""The cache of compiled programs: what a second process finds, and whose variables win."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from rlhf_jax.runtime import hosts, programs

PROGRAM = """
import collections, jax, jax.numpy as jnp
from rlhf_jax.runtime import programs
seen = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: seen.update([event.rpartition("/")[2]]))
programs.keep()
print(float(jax.jit(lambda x: jnp.sin(x).sum())(jnp.ones(7))), seen["cache_hits"], seen["cache_misses"])
"""


@pytest.fixture
def unset(monkeypatch, tmp_path):
    """No setting of the cache, and an empty home; what `keep` sets is undone."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "rlhf_jax" / "programs"
    for name, value in before.items():
        jax.config.update(name, value)


SETTINGS = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"


def test_a_second_process_compiles_nothing_and_a_torn_file_is_no_error(tmp_path):
    def run():
        environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
        environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
        )
        value, hits, misses = done.stdout.split()
        assert float(value) == pytest.approx(7 * 0.8414709848)
        return int(hits), int(misses), done.stderr

    _, compiled, _ = run()
    hits, misses, _ = run()
    assert compiled > 0 and (hits, misses) == (compiled, 0)
    (folder,) = (tmp_path / "rlhf_jax" / "programs").iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    for file in folder.iterdir():  # as a process that was killed leaves it
        file.write_bytes(file.read_bytes()[:100])
    assert "cache entry" in run()[2]


def test_the_users_cache_is_used_unless_a_variable_of_jax_says_otherwise(unset, monkeypatch):
    programs.keep()
    assert pathlib.Path(jax.config.jax_compilation_cache_dir).parent == unset
    jax.config.update("jax_compilation_cache_dir", None)
    for value in ("", "/elsewhere"):
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", value)
        programs.keep()
        assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setattr(hosts, "count", lambda: 2)  # only the first of them would write
    programs.keep()
    assert jax.config.jax_compilation_cache_dir is None


def test_without_a_place_for_the_cache_everything_is_compiled(unset, monkeypatch):
    unset.parent.write_text("a file")
    programs.keep()
    assert jax.config.jax_compilation_cache_dir is None


def test_what_was_not_read_for_the_longest_time_makes_room(tmp_path):
    for age, name in enumerate("abcd"):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1000 - age, 10))
    programs.make_room(tmp_path, 250)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}
