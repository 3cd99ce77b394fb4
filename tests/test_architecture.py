"""The rooms and the arrows between them: who may import whom, read from the source."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "polopt"

# What each room may import of polopt besides itself: a room, or one module of it.
PARTS = {"core", "objectives"}
LOOPS = PARTS | {"policies", "critics", "envs", "data", "optim"}
ALLOWED = {
    "core": set(),
    "objectives": set(),
    "policies": PARTS,
    "critics": PARTS,
    "envs": PARTS,
    # the exact testbeds are made of enumerable problems and of tables that write their sequences
    "data": PARTS | {"envs.exact.sequences", "policies.language.tabular"},
    "optim": PARTS,
    "loops": LOOPS,
    "methods": LOOPS | {"loops"},
    # policies judged from logged data; who made the data is cloned
    "evaluation": LOOPS | {"methods.offline.bc"},
    # run sees methods and loops through what they promise, and finds methods by name in the registry
    "run": {"core", "envs", "data", "policies.actor", "policies.random", "policies.saved", "policies.language", "methods.registry"},
}
# Two doors: `run.export(...)` and `run.evaluate_offline(...)` hand the policy to what a user would otherwise have to find.
DOORS = {("run.run", "interop.export"), ("run.run", "evaluation.offline")}
TOP = {"claims", "interop", "cli", "__init__", "__main__"}  # may import everything below
ABOVE = {"interop": {"claims", "cli"}, "claims": {"cli"}}  # but these stand in order too

# Libraries that `import polopt` and `import polopt.objectives` leave alone.
HEAVY = ("jax", "torch", "equinox", "gymnasium", "matplotlib")


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def dotted(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path) -> set[str]:
    """Every module of polopt that a file imports, at the top or inside a function, without the leading `polopt.`."""
    found = set()
    package = dotted(file) if file.name == "__init__.py" else dotted(file).rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
            # `from polopt.run import fit` may name a module or a function of the package; only the module counts
            wanted = [f"{source}.{alias.name}" for alias in node.names if alias.name != "__version__"]
            names = [name if is_module(name) else source for name in wanted]
        else:
            continue
        # the package itself hands out what stands on top
        found.update("__init__" if name == "polopt" else name.removeprefix("polopt.") for name in names if name.split(".")[0] == "polopt")
    return found


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return name.startswith("polopt.") and (path.with_suffix(".py").is_file() or path.is_dir())


def room_of(module: str) -> str:
    return module.split(".")[0]


def may_import(room: str, module: str) -> bool:
    """Whether a file of `room` may import `module` (both without `polopt.`)."""
    if room_of(module) == room:
        return True
    if room in TOP:
        return room_of(module) not in ABOVE.get(room, set())
    return any(module == known or module.startswith(known + ".") for known in ALLOWED[room])


def test_every_room_is_known():
    rooms = {file.relative_to(PACKAGE).with_suffix("").parts[0] for file in modules()}
    assert rooms <= set(ALLOWED) | TOP, "a new room needs its place in ALLOWED"


@pytest.mark.parametrize("file", modules(), ids=dotted)
def test_arrows_point_downwards(file):
    room = file.relative_to(PACKAGE).with_suffix("").parts[0]
    name = dotted(file).removeprefix("polopt.")
    wrong = sorted(module for module in imports(file) if not may_import(room, module) and (name, module) not in DOORS)
    assert not wrong, f"{dotted(file)} imports {', '.join('polopt.' + m for m in wrong)}, which the room {room!r} must not know"


def test_the_arrows_themselves():
    """The checker refuses what it is there to refuse."""
    assert may_import("methods", "loops.on_policy") and may_import("run", "methods.registry") and may_import("policies", "core.spaces")
    for room, module in [("core", "envs"), ("objectives", "core"), ("policies", "critics.value"), ("loops", "methods.registry")]:
        assert not may_import(room, module)
    assert not may_import("run", "methods.policy_gradient.ppo") and not may_import("run", "loops.on_policy") and not may_import("interop", "cli")


def test_imports_inside_functions_count(tmp_path, monkeypatch):
    file = tmp_path / "polopt" / "envs" / "late.py"
    file.parent.mkdir(parents=True)
    lines = ["from polopt.run import fit", "from ..loops import on_policy", "import polopt.cli as cli", "from polopt import load, __version__"]
    file.write_text("\n    ".join(["def f():", *lines]))
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert imports(file) == {"run", "loops", "cli", "__init__"}


@pytest.mark.parametrize("file", modules(), ids=dotted)
def test_every_module_says_what_it_is(file):
    assert (ast.get_docstring(ast.parse(file.read_text())) or "").strip(), f"{dotted(file)} has no docstring"


def test_no_file_holds_a_path_of_one_machine():
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    own = re.compile(r"(?<![\w.~}])/(work|root|farm|home/\w+|Users/\w+)/")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    text = {f.relative_to(ROOT): f.read_text(errors="ignore") for f in files if f.is_file()}
    found = sorted(f"{name}: {own.search(content).group()}" for name, content in text.items() if own.search(content))
    assert not found, found


@pytest.mark.parametrize("name", ["polopt", "polopt.objectives"])
def test_import_is_light(name):
    program = f"import {name}, sys; print(' '.join(m for m in {HEAVY!r} if m in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not loaded, f"import {name} loads {', '.join(loaded)}"
