"""Check the rules of the house that no other tool checks; `make lint` runs it.

- No Python file has more than MAX_LINES lines (generated code aside).
- Every public module, class, function and method of the product has a docstring.
- Links, file paths in backticks and citations of protocol.md lead somewhere (`check_links`).

Names with a leading underscore, nested functions, overloads and property setters need no docstring, nor do
methods that a base class or a protocol of the tree documents already.
"""

from __future__ import annotations

import ast
import asyncio
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.check_links import Tree, check

MAX_LINES = 400
PACKAGES = (
    "proto/nvcf_proto",
    "broker/nvcf_broker",
    "otel/nvcf_otel",
    "worker_runtime/nvcf_worker",
    "gateway/nvcf_gateway",
    "autoscaler/nvcf_autoscaler",
    "agent/nvcf_agent",
    "cli/nvcf_cli",
)

# What is not as it should be yet. Both lists are to become empty; nothing may be added.
LONG_FILES: dict[str, int] = {}
MISSING_DOCSTRINGS: dict[str, int] = {}

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_EXEMPT = frozenset(("overload", "override", "setter", "deleter"))
_STANDARD = {"asyncio": asyncio, "logging": logging}


@dataclass
class _Class:
    package: str
    file: str
    node: ast.ClassDef
    bases: list[str]
    methods: dict[str, _Function] = field(default_factory=dict)

    @property
    def documented(self) -> set[str]:
        return {name for name, method in self.methods.items() if ast.get_docstring(method, clean=False)}


def long_files(tree: Tree) -> list[str]:
    """Return the files that are too long, as failures."""
    failures = []
    for name in tree.having(".py"):
        lines = 0 if "/pb/" in name else tree.text(name).count("\n")
        if lines > max(MAX_LINES, LONG_FILES.get(name, 0)):
            failures.append(f"{name}: {lines} lines; at most {MAX_LINES}: split it by subject")
    return failures


def missing_docstrings(tree: Tree) -> dict[str, list[str]]:
    """Return what lacks a docstring, by package."""
    found: dict[str, list[str]] = {package.rpartition("/")[2]: [] for package in PACKAGES}
    classes: list[_Class] = []
    for package in PACKAGES:
        short = package.rpartition("/")[2]
        for name in tree.having(".py"):
            if name.startswith(package + "/") and "/pb/" not in name:
                module = ast.parse(tree.text(name), name)
                found[short] += _of_module(name, module)
                if not _private(Path(name).stem):
                    classes += _classes(short, name, module.body)
    known: dict[str, list[_Class]] = {}
    for each in classes:
        known.setdefault(each.node.name, []).append(each)
    protocols = [each for each in classes if "Protocol" in each.bases and each.documented]
    for each in classes:
        found[each.package] += _of_class(each, known, protocols)
    return found


def _private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def _hidden(name: str) -> bool:
    return name.startswith("_")


def _of_module(name: str, module: ast.Module) -> Iterator[str]:
    if _private(Path(name).stem):
        return
    if module.body and ast.get_docstring(module, clean=False) is None:
        yield f"{name}:1: module"
    for node in _defined(module.body):
        if isinstance(node, _FUNCTIONS) and not _hidden(node.name) and _lacks(node):
            yield f"{name}:{node.lineno}: function {node.name}"


def _defined(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Walk over what a body defines, also under `if` and `try`."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from _defined(node.body + node.orelse)
        else:
            yield node


def _lacks(node: _Function | ast.ClassDef) -> bool:
    decorators = {_last_name(each) for each in node.decorator_list}
    return ast.get_docstring(node, clean=False) is None and not decorators & _EXEMPT


def _last_name(node: ast.expr) -> str:
    match node:
        case ast.Call(func=inner) | ast.Subscript(value=inner):
            return _last_name(inner)
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
        case _:
            return ""


def _classes(package: str, file: str, body: list[ast.stmt]) -> Iterator[_Class]:
    for node in _defined(body):
        if isinstance(node, ast.ClassDef):
            found = _Class(package, file, node, [ast.unparse(base).partition("[")[0] for base in node.bases])
            found.methods = {each.name: each for each in _defined(node.body) if isinstance(each, _FUNCTIONS)}
            yield found
            yield from _classes(package, file, node.body)


def _of_class(each: _Class, known: dict[str, list[_Class]], protocols: list[_Class]) -> Iterator[str]:
    if _hidden(each.node.name):
        return
    if _lacks(each.node):
        yield f"{each.file}:{each.node.lineno}: class {each.node.name}"
    covered: set[str] | None = None
    for name, method in each.methods.items():
        if _hidden(name) or not _lacks(method):
            continue
        covered = _covered(each, known, protocols) if covered is None else covered
        if name not in covered:
            yield f"{each.file}:{method.lineno}: method {each.node.name}.{name}"


def _covered(each: _Class, known: dict[str, list[_Class]], protocols: list[_Class]) -> set[str]:
    """Return the methods whose docstrings are with a base class, or with a protocol that the class has."""
    result: set[str] = set()
    ahead, seen = list(each.bases), {each.node.name}
    while ahead:
        dotted = ahead.pop()
        module, _, name = dotted.rpartition(".")
        if dotted not in seen:
            seen.add(dotted)
            if module in _STANDARD:
                result |= set(dir(getattr(_STANDARD[module], name)))
            for base in () if module in _STANDARD else known.get(name, ()):
                result |= base.documented
                ahead += base.bases
    for protocol in protocols:
        if protocol.methods.keys() <= each.methods.keys():
            result |= protocol.documented
    return result


def _docstring_failures(tree: Tree) -> list[str]:
    failures = []
    for package, missing in missing_docstrings(tree).items():
        allowed = MISSING_DOCSTRINGS.get(package, 0)
        if len(missing) > allowed:
            failures += [f"{each} has no docstring" for each in missing]
            if allowed:
                failures.append(f"{package}: {len(missing)} names without docstring; at most {allowed}")
        elif len(missing) < allowed:
            print(f"note: MISSING_DOCSTRINGS of {package} can be lowered to {len(missing)}")
    return failures


def main() -> int:
    """Print what is wrong; return 1 when anything is."""
    tree = Tree()
    failures = long_files(tree) + _docstring_failures(tree) + check(tree)
    print("\n".join(failures) if failures else "the house is in order")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
