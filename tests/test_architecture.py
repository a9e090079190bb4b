"""The house: imports go one way, each library has one home, and importing touches no device."""

import ast
import pathlib
import subprocess
import sys

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "rlhf_jax"

# Lower never imports higher.
LAYERS = (
    {"terminal", "markdown"},
    {"errors", "command_line", "files", "finished", "hosts", "keys", "losses", "advantages", "progress", "workdir"},
    {"optim", "sharding", "metrics", "checkpoint", "data", "world", "attention", "model"},
    {"decode"},
    {"generate", "train", "hf"},
    {"shapes"},
    {"ppo", "ppo_options", "run"},
    {"loop"},
    {"supervised"},
    {"pretrain"},
    {"sft", "collect"},
    {"rankings"},
    {"reward_model", "dpo", "evaluate", "ppo_stage", "optimum", "plan"},
    {"best_of_n_stage", "prompted"},
    {"report", "chat"},
    {"pipeline"},
    {"job", "sweep"},
    {"main", "bench"},
)
# Statistics are arithmetic on arrays, wherever they are needed; SFT may select by a reward model.
ALLOWED = {("sft", "reward_model"), ("collect", "reward_model"), ("reward_model", "evaluate"), ("data", "evaluate")}


def imports(path: pathlib.Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(path: pathlib.Path) -> str:
    if path.name == "__main__.py":  # a program, whatever folder it is in
        return "main"
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def sources() -> list[pathlib.Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if part(path) not in ("__init__", "config")]


def test_every_part_has_a_layer_and_imports_none_above_it():
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    wrong = []
    for path in sources():
        assert part(path) in level, f"{path.name}: say in which layer '{part(path)}' is"
        for name in imports(path):
            pieces = name.split(".")
            if pieces[0] == "rlhf_jax" and len(pieces) > 1 and pieces[1] in level:
                pair = (part(path), pieces[1])
                if level[pair[1]] > level[pair[0]] and pair not in ALLOWED:
                    wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong


def test_the_mathematics_imports_jax_alone():
    for name in ("losses", "advantages"):
        roots = {module.split(".")[0] for module in imports(PACKAGE / f"{name}.py")}
        assert roots <= {"jax", "typing"}


def test_each_library_has_one_home():
    homes = {
        "orbax": {"checkpoint.py"},
        "flax.linen": {"model.py"},
        "tokenizers": {"tokenizer.py", "tokenizer_files.py"},
        "jinja2": {"jinja_process.py"},
        "markdown_it": {"html_page.py"},
    }
    for library, home in homes.items():
        users = {path.name for path in sources() if any(f"{name}.".startswith(f"{library}.") for name in imports(path))}
        assert users == home


def test_importing_the_program_starts_no_backend():
    code = (
        "import rlhf_jax.main, rlhf_jax.stages.ppo, rlhf_jax.stages.reward_model, rlhf_jax.report, jax._src.xla_bridge as b;"
        "assert not b._backends, b._backends"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


def test_durations_are_not_taken_from_a_clock_that_people_and_networks_set():
    """time.time() is a date, which metrics.jsonl has; a difference of two may be negative."""
    assert {path.name for path in sources() if "time.time()" in path.read_text(encoding="utf-8")} == {"metrics.py"}
