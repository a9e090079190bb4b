"""The choice of settings by memory: against all combinations, and on the programs of a stage."""

import itertools

import plan_config
import pytest
import tiny
from test_plan import DATA

from rlhf_jax import forecast
from rlhf_jax import run as run_lib
from rlhf_jax.model import choice
from rlhf_jax.plan import planner

ROWS = {"microbatches": [1, 2, 4, 8], "slots": [64, 32, 16]}


def update(change):
    return 100 + 80 / change["microbatches"] * 4


def sample(change):
    return 50 + 2 * change["slots"]


@pytest.mark.parametrize("limit", [1000, 420, 180, 141, 139, 60])
def test_as_many_rows_as_fit_and_no_fewer(limit):
    found = choice.choose([update, sample], ROWS, [limit, limit])
    fitting = [
        change
        for values in itertools.product(*ROWS.values())
        if max(update(change := dict(zip(ROWS, values))), sample(change)) <= limit
    ]
    if not fitting:
        assert found is None
    else:
        assert found == {
            "microbatches": min(change["microbatches"] for change in fitting),
            "slots": max(change["slots"] for change in fitting),
        }


def test_two_fields_of_one_program_both_go_to_less_memory():
    def need(change):
        return 64 / change["a"] + 64 / change["b"]

    found = choice.choose([need], {"a": [1, 2, 4, 8], "b": [1, 2, 4]}, [40])
    assert need(found) <= 40 and found["a"] < 8


def test_a_value_that_takes_more_memory_for_once_is_passed():
    """A second part takes a second gradient, and the third is the first that saves something."""
    need = {1: 100, 2: 110, 4: 60}
    assert choice.choose([lambda change: need[change["parts"]]], {"parts": [1, 2, 4]}, [70]) == {"parts": 4}


def test_parts_divide_the_rows_over_the_devices():
    assert choice.parts(64, 8) == [1, 2, 4, 8]
    assert choice.parts(12, 2) == [1, 2, 3, 6]
    assert choice.rows_at_once(64, 8) == [64, 32, 16, 8]


def test_the_programs_of_ppo_take_fewer_rows_at_once_where_memory_is_small():
    run = run_lib.without_data(plan_config.get_config(), DATA, tiny.mesh_of("1x1x1"))
    programs = planner.programs_of(run, "ppo_ptx", DATA)
    options = {field: values for program in programs for field, values in program.options.items()}
    whole = forecast.choose(programs, run.mesh, [2**40] * len(programs), options)
    assert whole == {field: values[0] for field, values in options.items()}
    need = forecast.of(programs, run.mesh, whole).total
    less = forecast.choose(programs, run.mesh, [0.8 * need] * len(programs), options)
    assert less != whole and forecast.of(programs, run.mesh, less).total <= 0.8 * need
    assert forecast.choose(programs, run.mesh, [1000] * len(programs), options) is None
    parts = {name: values for name, values in options.items() if name != "slots"}
    assert forecast.choose(programs, run.mesh, [0.8 * need] * len(programs), parts) == {
        name: less[name] for name in parts
    }
