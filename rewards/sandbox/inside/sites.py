"""Tests as text: every ``assert`` becomes a site that counts how often it was begun and how often it held."""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterable

from rewards.sandbox.inside.peer import Interruption

TYPE_CHECKING = False  # Importing `typing` would take longer than what is done here.
if TYPE_CHECKING:
    from typing import Any

_NAME = "__sites__"
_MODULES = {name: name for name in sys.stdlib_module_names} | {"np": "numpy", "numpy": "numpy"}


class Sites:
    """The sites of one text.

    A site passes if it was begun, and held each time. One that fails does not keep the others from being reached.
    """

    def __init__(self) -> None:
        """Start without any."""
        self.lines: list[int] = []
        self.begun: list[int] = []
        self.held: list[int] = []
        self.problem = ""

    def add(self, line: int) -> int:
        """Return the number of a new site."""
        self.lines.append(line)
        self.begun.append(0)
        self.held.append(0)
        return len(self.lines) - 1

    def begin(self, site: int) -> int:
        """Take note that a site is reached; whatever happens from here on, it has to hold."""
        self.begun[site] += 1
        return site

    def judge(self, site: int, value: object) -> None:
        """Take note of what an assertion came to."""
        if value:
            self.held[site] += 1
        else:
            self.note(f"the assertion in line {self.lines[site]} does not hold")

    def fail(self) -> None:
        """Go on after an assertion that raised, unless the time is over."""
        error = sys.exc_info()[1]
        if isinstance(error, Interruption):
            raise error
        self.note(describe(error))

    def note(self, problem: str) -> None:
        """Remember what went wrong first."""
        self.problem = self.problem or problem

    @property
    def passed(self) -> int:
        """How many sites passed."""
        return sum(begun == held > 0 for begun, held in zip(self.begun, self.held, strict=True))


class Text:
    """A text of tests, ready to run.

    Attributes:
        code: What to execute.
        sites: The sites that it tells.
        wanted: Names that it uses, builtins aside.
        bound: Names that it defines, anywhere.
        modules: Names that it uses as those of modules, and the modules: of the standard library, or numpy.
    """

    def __init__(self, source: str) -> None:
        """Read a text and put sites in place of assertions.

        Asserting a constant says nothing about a program, so it is no site, and does what it always does.

        Raises:
            SyntaxError: The text is no Python.
            ValueError: Nor here.
        """
        tree = ast.parse(source)
        nodes = list(ast.walk(tree))
        self.wanted = _used(nodes)
        self.bound = {name for node in nodes for name in _bound(node)}
        bases = [node.value for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
        others = {node.id for node in nodes if isinstance(node, ast.Name) and node not in bases}
        self.modules = {name: _MODULES[name] for name in {base.id for base in bases} - others if name in _MODULES}
        self.sites = Sites()
        self.code = compile(ast.fix_missing_locations(_Transformer(self.sites).visit(tree)), "<tests>", "exec")

    def run(self, names: dict[str, Any]) -> None:
        """Execute it in a namespace."""
        names[_NAME] = self.sites
        exec(self.code, names)


def used_names(source: str) -> set[str]:
    """Return the names that an expression uses, builtins aside; none if it is no Python."""
    try:
        return _used(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):
        return set()


def _used(nodes: Iterable[ast.AST]) -> set[str]:
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    return {name for name in names - set(vars(builtins)) if not name.startswith("__")}


def _bound(node: ast.AST) -> list[str]:
    """Return the names that a node defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.ExceptHandler):
        return [node.name] if node.name else []
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [(alias.asname or alias.name).partition(".")[0] for alias in node.names]
    if isinstance(node, ast.Name):
        return [] if isinstance(node.ctx, ast.Load) else [node.id]
    return [node.arg] if isinstance(node, ast.arg) else []


def describe(error: BaseException | None) -> str:
    """Return an exception in words."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


class _Transformer(ast.NodeTransformer):
    def __init__(self, sites: Sites) -> None:
        self._sites = sites

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        """Replace an assertion by a site.

        ``assert value`` becomes, where k is the site's number::

            try:
                __sites__.judge(__sites__.begin(k), value)
            except BaseException:
                __sites__.fail()
        """
        if isinstance(node.test, ast.Constant):
            return node
        if isinstance(node.test, ast.Tuple) and node.test.elts:  # Always true; parentheses too many, most likely.
            return ast.copy_location(ast.Expr(node.test), node)
        begun = _call("begin", ast.Constant(self._sites.add(node.lineno)))
        handler = ast.ExceptHandler(type=None, name=None, body=[ast.Expr(_call("fail"))])
        judged = ast.Expr(_call("judge", begun, node.test))
        return ast.copy_location(ast.Try(body=[judged], handlers=[handler], orelse=[], finalbody=[]), node)


def _call(method: str, *args: ast.expr) -> ast.Call:
    return ast.Call(ast.Attribute(ast.Name(_NAME, ast.Load()), method, ast.Load()), list(args), [])
