"""The house: imports go one way, each library has one home, and importing touches no device."""

import ast
import functools
import pathlib
import re
import subprocess
import sys

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "rlhf_jax"

# Lower never imports higher; docs/architecture.md says what each is for. A folder is one part; its __main__ is a program.
LAYERS = (
    {"runtime", "losses", "advantages", "statistics", "optim", "lora", "scripts", "watching"},
    {"fields", "checkpoint", "metrics", "sharding"},
    {"model", "train", "trackers"},
    {"data", "hf", "journal"},
    {"released"},
    {"sources"},
    {"token_loss", "generate", "shapes", "world", "rewards", "label"},
    {"settled", "notes", "chosen"},
    {"ppo", "run"},
    {"inputs", "weights", "sampling", "loop"},
    {"abstract", "language_model", "selection"},
    {"evaluate", "forecast"},
    {"stages", "fitted"},
    {"config", "report", "plan"},
    {"pipeline", "chat", "command_line"},
    {"job", "optimum"},
    {"main", "sweep"},
    {"bench"},
    {"programs"},
)


@functools.cache
def imports(path: pathlib.Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(path: pathlib.Path) -> str:
    if path.name == "__main__.py":
        return "programs"
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def sources() -> list[pathlib.Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def module(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def test_every_part_has_a_layer_and_imports_none_above_it_and_none_beside_it():
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    wrong = []
    for path in sources():
        assert part(path) in level, f"{path.name}: say in which layer '{part(path)}' is"
        for name in imports(path):
            pieces = name.split(".")
            if pieces[0] == "rlhf_jax" and len(pieces) > 1 and pieces[1] in level and pieces[1] != part(path):
                if level[pieces[1]] >= level[part(path)]:
                    wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong


def test_the_page_shows_the_tree_and_the_layers():
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = page.split("```")[1]
    shown = {line.split()[0].rstrip("/") for line in block.splitlines() if line and not line.startswith(" ")}
    there = {path.name for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"} - {
        "__init__.py",
        "__pycache__",
    }
    assert shown == there
    lists = [
        set(re.findall(r"`(\w+)`", line)) for line in page.split("## ")[2].splitlines() if re.match(r"\d+\. `", line)
    ]
    assert lists == [layer - {"scripts"} for layer in LAYERS if layer != {"programs"}]


def test_no_files_import_each_other_in_a_circle():
    """In folders too, and in functions: an import that has to wait until its function is called hides a circle."""
    paths = {module(path): path for path in sources()}

    def wanted(path):
        for name in imports(path) & paths.keys():
            # `from package import module` names both; the package itself is wanted where a name of its own is.
            inner = {other for other in imports(path) if other.rpartition(".")[0] == name}
            if not inner or inner - paths.keys():
                yield name

    edges = {name: set(wanted(path)) - {name} for name, path in paths.items()}
    while leaves := {name for name, wanted in edges.items() if not wanted}:
        edges = {name: wanted - leaves for name, wanted in edges.items() if name not in leaves}
    assert not edges


def test_no_import_of_ours_waits_inside_a_function():
    waiting = []
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.ImportFrom)
                and node not in tree.body
                and (node.module or "").startswith("rlhf_jax")
            ):
                waiting.append(f"{path.relative_to(PACKAGE)}, line {node.lineno}")
    assert not waiting


def test_the_mathematics_imports_jax_alone():
    for name in ("losses", "advantages"):
        roots = {module.split(".")[0] for module in imports(PACKAGE / f"{name}.py")}
        assert roots <= {"collections", "jax", "typing"}


def test_each_library_has_one_home():
    homes = {
        "orbax": {"checkpoint.py", "hosts.py"},  # in hosts.py its barrier between processes
        "flax.linen": {"transformer.py"},
        "tokenizers": {"tokenizer.py", "tokenizer_files.py", "tokenizer_sides.py"},
        "jinja2": {"jinja_process.py"},
        "markdown_it": {"html_page.py"},
    }
    for library, home in homes.items():
        users = {path.name for path in sources() if any(f"{name}.".startswith(f"{library}.") for name in imports(path))}
        assert users == home


def test_importing_the_program_starts_no_backend_and_loads_no_figures_or_statistics():
    """SciPy and matplotlib take 85 MiB, which a process that trains does without."""
    code = (
        "import rlhf_jax.main, rlhf_jax.stages.ppo, rlhf_jax.stages.reward_model, rlhf_jax.report, jax._src.xla_bridge as b;"
        "assert not b._backends, b._backends; import sys;"
        "found = {'matplotlib', 'scipy.stats', 'scipy.optimize', 'scipy.sparse'} & set(sys.modules); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


def test_durations_are_not_taken_from_a_clock_that_people_and_networks_set():
    """time.time() is a date, which metrics.jsonl has; a difference of two may be negative."""
    assert {path.name for path in sources() if "time.time()" in path.read_text(encoding="utf-8")} == {
        "metrics.py",
        "mlflow.py",
    }
