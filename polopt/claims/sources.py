"""Which sources a result depends on, and a fingerprint of each: read from the import statements, nothing is imported.

From the claim's and the method's module on, imports are followed, also those inside functions. Of a file that is reached, those top-level
definitions count that the ones already reached name, so that a function added to a shared file makes no evidence stale; what is named in a
way that cannot be followed (a module handed on as a value, a star import) counts whole. A fingerprint is taken of the
syntax tree without comments and docstrings, so it changes when the code does, and is the same under every Python.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
WHOLE = "*"
ASIDE = ("analysis", "seconds", "slow")  # what a claim says of its result and its cost changes no number


def fingerprints(*modules: str, root: Path = ROOT) -> dict[str, str]:
    """For every file that the modules' code depends on, by its path from `root`, the fingerprint of what it contributes; sorted by path."""
    package = modules[0].partition(".")[0]
    reached: dict[str, set[str]] = {}
    missing = set()
    waiting = [(module, WHOLE) for module in modules]
    while waiting:
        module, name = waiting.pop()
        if _file(root, module) is None:
            missing |= {module} if name else set()  # a package without __init__.py has nothing to run
            continue
        known = reached.setdefault(module, set())
        if name in known:
            continue
        source = _read(root, module)
        if not known:  # whatever is taken of a module, importing it runs these
            known.add("")
            waiting += _used(source, source.always, root, package)
            parent = module.rpartition(".")[0]
            waiting += [(parent, "")] if parent else []
            waiting += [(imported, "") for imported in source.imported]
        known.add(name)
        waiting += _used(source, _definitions(source, name), root, package)
        if name not in (WHOLE, "") and name not in source.definitions:
            # handed on from another module, or made by the module's __getattr__
            waiting += source.imports.get(name) or [(module, WHOLE)]
    found = {f"{module.replace('.', '/')}.py": "missing" for module in missing}
    for module, names in reached.items():
        source = _read(root, module)
        statements = {id(s): s for name in names for s in _definitions(source, name)} | {id(s): s for s in source.always}
        if statements:
            parts = [_text(s) for s in sorted(statements.values(), key=lambda s: s.lineno)]
            found[source.path.relative_to(root).as_posix()] = _digest(parts)
    return dict(sorted(found.items()))


def fingerprint(path: Path) -> str:
    """Of a whole file."""
    return _digest([_canonical(ast.parse(path.read_text()))])


@dataclass(frozen=True)
class _Source:
    """A module: its top-level definitions by name, the statements that run in any case, what its imports bind, and which run at once."""

    path: Path
    definitions: dict[str, list[ast.stmt]]
    always: list[ast.stmt]
    imports: dict[str, list[tuple[str, str]]]  # local name -> (module, name in it, or the whole)
    imported: frozenset[str]


def _file(root: Path, module: str) -> Path | None:
    base = root.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _read(root: Path, module: str) -> _Source:
    path = _file(root, module)
    return _parse(root, module, path, path.stat().st_mtime_ns)


@functools.cache
def _parse(root: Path, module: str, path: Path, changed: int) -> _Source:
    tree = ast.parse(path.read_text())
    definitions: dict[str, list[ast.stmt]] = {}
    always: list[ast.stmt] = []
    for statement in _without_docstring(tree.body):
        names = _bound(statement)
        for name in names:
            definitions.setdefault(name, []).append(statement)
        if not names and not isinstance(statement, (ast.Import, ast.ImportFrom)) and not _for_checkers(statement):
            always.append(statement)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    imports: dict[str, list[tuple[str, str]]] = {}
    imported = set()
    for node, inside in _import_statements(tree):
        for name, target in _targets(node, root, package, module.partition(".")[0]):
            imports.setdefault(name, []).append(target)
            imported |= set() if inside else {target[0]}
    return _Source(path, definitions, always, imports, frozenset(imported))


def _bound(statement: ast.stmt) -> list[str]:
    """The names that a definition or a plain assignment binds."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [statement.name]
    if isinstance(statement, ast.Assign):
        targets = [n for t in statement.targets for n in (t.elts if isinstance(t, (ast.Tuple, ast.List)) else [t])]
    elif isinstance(statement, (ast.AnnAssign, ast.AugAssign)):
        targets = [statement.target]
    else:
        return []
    return [t.id for t in targets] if all(isinstance(t, ast.Name) for t in targets) else []


def _import_statements(node: ast.AST, inside: bool = False) -> Iterator[tuple[ast.stmt, bool]]:
    """Every import statement in the tree, and whether it stands inside a function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, inside
        if not _for_checkers(child):
            yield from _import_statements(child, inside or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))


def _for_checkers(node: ast.AST) -> bool:
    """`if TYPE_CHECKING:`, which never runs."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _targets(node: ast.stmt, root: Path, package: str, top: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """What an import statement binds: the local name, and (module, name in it or the whole); "" where the package `top` itself is bound."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.partition(".")[0] == top:
                yield alias.asname or top, (alias.name, WHOLE if alias.asname else "")
        return
    source = importlib.util.resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
    if source.partition(".")[0] != top:
        return
    for alias in node.names:
        inner = f"{source}.{alias.name}"
        if alias.name == "*":
            yield "*", (source, WHOLE)
        else:
            yield alias.asname or alias.name, (inner, WHOLE) if _file(root, inner) else (source, alias.name)


def _definitions(source: _Source, name: str) -> list[ast.stmt]:
    if name == WHOLE:
        return [s for statements in source.definitions.values() for s in statements]
    return source.definitions.get(name, [])


def _used(source: _Source, statements: list[ast.stmt], root: Path, package: str) -> Iterator[tuple[str, str]]:
    """What the statements name, as (module, name)."""
    module = ".".join(source.path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    yield from source.imports.get("*", [])
    for statement in statements:
        for chain in _named(statement):
            if chain[0] in source.definitions:
                yield module, chain[0]
            for target, name in source.imports.get(chain[0], []):
                rest = chain[1:]
                if name not in (WHOLE, ""):
                    yield target, name
                    continue
                if name == "":  # bound by `import a.b`: the chain starts at the package
                    target = package
                while rest and _file(root, f"{target}.{rest[0]}"):
                    target, rest = f"{target}.{rest[0]}", rest[1:]
                yield target, rest[0] if rest else WHOLE


@functools.cache  # statements live as long as the parsed files, and many claims share them
def _named(statement: ast.stmt) -> list[list[str]]:
    return list(_chains(statement))


def _chains(node: ast.AST) -> Iterator[list[str]]:
    """Every name in the tree with the attributes taken of it: ["parts", "replace"]."""
    if isinstance(node, ast.Name):
        yield [node.id]
        return
    if isinstance(node, ast.Attribute):
        attributes, inner = [], node
        while isinstance(inner, ast.Attribute):
            attributes.append(inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name):
            yield [inner.id, *reversed(attributes)]
            return
    for child in ast.iter_child_nodes(node):
        yield from _chains(child)


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0] if body else None
    is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    return body[1:] if is_text else body


@functools.cache
def _text(statement: ast.stmt) -> str:
    return _canonical(statement)


def _canonical(node) -> str:
    """A syntax tree as text: what every Python agrees on, without positions and docstrings, and of a claim without what is aside."""
    if isinstance(node, list):
        return "[" + ",".join(map(_canonical, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    words = [type(node).__name__]
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(value, list):
            value = _without_docstring(value)
        if name == "keywords" and isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Claim":
            value = [k for k in value if k.arg not in ASIDE]
        # what is absent or empty is left out, since later versions of Python add fields; `kind` tells u"" from ""
        if value is not None and value != [] and name not in ("ctx", "kind", "type_comment", "type_ignores"):
            words.append(f"{name}={_canonical(value)}")
    return "(" + " ".join(words) + ")"


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
