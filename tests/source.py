"""What the package's own code says, from its syntax tree: documents, metrics and checks are compared with it."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import notifications

PACKAGE = Path(notifications.__file__).parent


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    """Return every node of a file."""
    return list(ast.walk(ast.parse(path.read_text())))


@cache
def nodes() -> list[ast.AST]:
    """Return every node of every module."""
    return [node for path in sorted(PACKAGE.rglob("*.py")) for node in nodes_of(path)]


def calls(*names: str) -> Iterator[ast.Call]:
    """Yield each call of a function or method of one of these names that has an argument."""
    for node in nodes():
        if isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            if called in names:
                yield node


def strings() -> list[str]:
    """Return every literal text, docstrings among them, as often as it is written."""
    return [node.value for node in nodes() if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def text(node: ast.expr) -> str:
    """Return a literal text; of an f-string what stands before its first value, of anything else nothing."""
    if isinstance(node, ast.JoinedStr):
        node = node.values[0]
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
