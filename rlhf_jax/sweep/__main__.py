"""Runs a sweep: every arm of an experiment file, what they share once, and a report at the end.

    python -m rlhf_jax.sweep --config=experiments/figures/fig33_ptx_coef.py --workdir=runs/fig33

The file has, beside get_config, a function sweep(h) that lists its arms:

    def sweep(h):
        return h.product([h.sweep("ppo_ptx.ptx_coef", [0.0, 0.5, 1.0, 2.0]), h.sweep("seed", range(3))])

with h.sweep (values of a field), h.product, h.zipit (side by side) and h.chain (one after the other). Every arm
is an ordinary run in WORKDIR/arms. The same command again does only what is missing.

--runner=vectorized trains all arms of a small model as one program, spread over the devices: the same numbers to
float tolerance, in a fraction of the time where one arm leaves an accelerator idle. Arms may be run by one runner
and the next ones by the other.

Exit status: 0 done; 2 bad input; 4 done, but arms failed (report.md has their reasons); 75 stopped by SIGTERM,
130 by Ctrl-C: the same command goes on.
"""

import os
import pathlib
import signal
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from rlhf_jax.errors import InputError

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, with a function sweep(h).", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the sweep lives; the same folder again does what is missing.")
_DATA = flags.DEFINE_string("data", None, "The folder of the data files (sets data.files.dir).")
_STAGES = flags.DEFINE_string("stages", None, "Where arms share stages (WORKDIR/stages); sweeps that name one folder share it.")
_ARMS = flags.DEFINE_string("arms", "", "Only these arms: 3:7 (3 to 6), 5, or 0,4,8:.")
_LIST = flags.DEFINE_bool("list", False, "List the arms and what became of them, and stop.")
_DRY_RUN = flags.DEFINE_bool("dry-run", False, "Say what would be computed, and stop.")
_RUNNER = flags.DEFINE_enum("runner", "sequential", ["sequential", "vectorized"], "One arm after another, or small models all at once.")
_AT_ONCE = flags.DEFINE_integer("trials_at_once", 0, "Vectorized: the most arms of a program, for want of memory; 0: all.", lower_bound=0)
_RETRY = flags.DEFINE_bool("retry", False, "Run arms that failed again.")
flags.mark_flags_as_required(["config", "workdir"])

EXIT_BAD_INPUT, EXIT_FAILED_ARMS, EXIT_SAVED, EXIT_STOPPED = 2, 4, 75, 130


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument '{argv[1]}'; fields of all arms are set as --config.ppo.iterations=20")
    config = _CONFIG.value
    if _DATA.value is not None:
        config.data.files.dir = _DATA.value
    if config.platform:
        os.environ["JAX_PLATFORMS"] = config.platform
    logging.set_verbosity(logging.WARNING)
    from rlhf_jax import progress

    try:
        sys.exit(_run(config, pathlib.Path(_WORKDIR.value)))
    except InputError as error:
        sys.exit(_fail(error, EXIT_BAD_INPUT))
    except progress.Stopped as error:
        sys.exit(_fail(error, EXIT_STOPPED if error.signal == signal.SIGINT else EXIT_SAVED))
    except KeyboardInterrupt:
        sys.exit(_fail("stopped without saving; run the same command to go on", EXIT_STOPPED))


def _run(config, path: pathlib.Path) -> int:
    from rlhf_jax import pipeline, report
    from rlhf_jax.files import write_json
    from rlhf_jax.sweep import arms, listing, sequential, vectorized
    from rlhf_jax.sweep.store import Store

    experiment = arms.load(flags.FLAGS["config"].config_filename, config)
    for arm in experiment.arms:
        pipeline.check_kinds(arm.config)
    chosen = arms.choose(experiment.arms, _ARMS.value)
    stages = pathlib.Path(_STAGES.value or path / "stages")
    if _LIST.value:
        listing.show_arms(chosen, path)
        return 0
    if _DRY_RUN.value:
        listing.show_work(chosen, path, stages)
        return 0
    store = Store(stages)
    overrides = config_flags.get_override_values(flags.FLAGS["config"])
    write_json(path / "sweep.json", arms.describe(experiment, config, overrides))
    if _RUNNER.value == "vectorized":
        vectorized.run(chosen, path, store, _RETRY.value, _AT_ONCE.value)
    else:
        sequential.run(chosen, path, store, _RETRY.value)
    report.show(report.write(path))
    failed = listing.failures(chosen, path)
    for name, reason in failed.items():
        print(f"rlhf_jax.sweep: {name} failed: {reason}", file=sys.stderr)
    return EXIT_FAILED_ARMS if failed else 0


def _fail(error, code: int) -> int:
    print(f"rlhf_jax.sweep: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    app.run(main)
