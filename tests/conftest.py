"""Runs before any test module is imported: eight CPU devices, fixed Hypothesis, shared data."""

import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
if 'xla_force_host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = (os.environ.get('XLA_FLAGS', '')
                               + ' --xla_force_host_platform_device_count=8').strip()

import hypothesis
import pytest

hypothesis.settings.register_profile('repeatable', deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile('repeatable')

_PROJECT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope='session')
def shared_data() -> pathlib.Path:
    """The folder of real data beside the project; tests that need it skip where it is missing."""
    path = pathlib.Path(os.environ.get('RLHF_JAX_SHARED_DATA', _PROJECT.parent / 'shared' / 'data'))
    if not path.is_dir():
        pytest.skip(f'no real data: {path} is missing (RLHF_JAX_SHARED_DATA names another place)')
    return path
