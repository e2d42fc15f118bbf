"""The tester: runs tests in one process against a program in another, and alone has a way to say what came of it.

Its process forks the program's before it has read anything, so that there is nothing to be found in memory, and the
program's process gives up all file descriptors but the two over which it is asked. The tester cannot be inspected by
processes of the same user, and where it is the first of its process space, they cannot stop or kill it either.
"""

from __future__ import annotations

import ast
import copy
import ctypes
import importlib
import json
import os
import signal
import sys
from types import FrameType

from rewards.sandbox.inside import program, watch
from rewards.sandbox.inside.canonical import canonical
from rewards.sandbox.inside.peer import Interruption
from rewards.sandbox.inside.remote import Program
from rewards.sandbox.inside.sites import Text, describe, used_names

TYPE_CHECKING = False  # Importing `typing` would take longer than what is done here.
if TYPE_CHECKING:
    from typing import Any

_PR_SET_DUMPABLE = 4
_AGAIN = 0.1
"""Seconds after which an interruption is repeated, should a test have caught it."""
_LONGEST_PROBLEM = 300


def main() -> None:
    """Read a task from stdin, write the verdict to stdout."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    to_program, to_tester = os.pipe(), os.pipe()
    if os.fork() == 0:
        program.main(to_program[0], to_tester[1])
    os.close(to_program[0])
    os.close(to_tester[1])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Orphans come here to be buried.
    output = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # What tests print is no verdict.
    os.write(output, b"ready\n")
    task = json.loads(sys.stdin.buffer.read())
    watch.start(task["seconds"] + task["grace"], task["memory"], output)
    sys.path += task["paths"]
    peer = Program(to_tester[0], to_program[1])
    verdict = (_behavior if task["inputs"] is not None else _tests)(task, peer)
    line = memoryview(json.dumps(verdict | {"nonce": task["nonce"]}).encode() + b"\n")
    while line:
        line = line[os.write(output, line) :]
    os._exit(0)


def _tests(task: dict[str, Any], peer: Program) -> dict[str, Any]:
    """Return how many tests there are and how many passed."""
    try:
        texts = [Text(source) for source in task["tests"]]
    except (SyntaxError, ValueError) as error:
        return {"broken": f"the tests are no Python: {error}"}
    loaded, began, ended, problem = False, 0, set(), ""
    try:
        _start_clock(task["seconds"])
        wanted = {name for text in texts for name in text.wanted}
        bound = {name for text in texts for name in text.bound}
        modules = {name: module for text in texts for name, module in text.modules.items()}
        names = _load(task, peer, wanted, bound, modules)
        loaded = True
        for began, text in enumerate(texts, 1):
            if _run(text, dict(names), task["entry_point"]):
                ended.add(began)
    except Interruption:
        problem = "it takes too long"
    except BaseException as error:
        problem = describe(error)
    _stop_clock()
    if not loaded:
        return {"passed": 0, "total": 1, "problem": f"the program does not load: {problem}"[:_LONGEST_PROBLEM]}
    passed = total = 0
    for number, text in enumerate(texts, 1):
        sites = text.sites
        passed += sites.passed if sites.lines else number in ended
        # A text that did not come to its end is one failure more: who knows what else it would have asked.
        total += len(sites.lines) + (not sites.lines or (number <= began and number not in ended))
        problem = problem or sites.problem
    return {"passed": passed, "total": total, "problem": problem[:_LONGEST_PROBLEM]}


def _run(text: Text, names: dict[str, Any], entry_point: str | None) -> bool:
    """Run a text of tests; return whether it came to its end."""
    try:
        text.run(names)
        if entry_point is not None and "check" in names:
            names["check"](names[entry_point])
    except Interruption:
        raise
    except BaseException as error:
        text.sites.note(describe(error))
        return False
    return True


def _behavior(task: dict[str, Any], peer: Program) -> dict[str, Any]:
    """Return what the program does with each input: None if it does not load, None for what is no expression."""
    texts = [text for text in task["inputs"] if isinstance(text, str)]
    found: list[str | None] = []
    loaded = False
    try:
        _start_clock(task["seconds"])
        names = _load(task, peer, {name for text in texts for name in used_names(text)}, set(), {})
        loaded = True
        for each in task["inputs"]:
            found.append(_outcome(each, dict(names)))
    except Interruption:
        pass
    except BaseException:
        loaded = False
    _stop_clock()
    missing = len(task["inputs"]) - len(found)
    return {"behavior": [*found, *["! takes too long"] * missing] if loaded else None}


def _outcome(given: str | list[Any], names: dict[str, Any]) -> str | None:
    """Return the canonical form of what a call returns, or the class of what it raises, after an exclamation mark."""
    try:
        if isinstance(given, list):
            args = copy.deepcopy(given)
            result = names["candidate"](*args)
            return canonical(result) if args == given else f"{canonical(result)} {canonical(args)}"
        code = compile(given, "<input>", "eval")
    except SyntaxError:
        return None
    except Interruption:
        raise
    except BaseException as error:
        return f"! {type(error).__name__}"
    try:
        return canonical(eval(code, names))
    except Interruption:
        raise
    except BaseException as error:
        return f"! {type(error).__name__}"


def _load(
    task: dict[str, Any], peer: Program, wanted: set[str], bound: set[str], modules: dict[str, str]
) -> dict[str, Any]:
    """Load the program and return the namespace in which to test it.

    What the prompt defines is taken from the prompt, but for what it leaves to the program: functions without a body.
    Other names come from the program, but for those that are used like modules.

    Args:
        task: The task.
        peer: The program.
        wanted: Names that are used.
        bound: Names that are defined where they are used.
        modules: Modules to import, by name.

    Raises:
        BaseException: The program did.
    """
    entry_point = task["entry_point"]
    own = _prompt(task["prompt"])
    own |= {name: importlib.import_module(module) for name, module in modules.items() if name not in own}
    wanted = wanted - set(own)
    peer.named = frozenset(name for name in wanted - bound if name[:1].isupper())
    peer.ask("load", task["sources"], entry_point, task["paths"])
    theirs = peer.ask("names", [*wanted, *([] if entry_point is None else [entry_point])])
    names: dict[str, Any] = {name: theirs[name] for name in wanted if name in theirs}
    names |= own | {"__name__": "tests"}
    if entry_point is not None:
        names[entry_point] = names["candidate"] = theirs[entry_point]
    return names


def _prompt(source: str) -> dict[str, Any]:
    """Return what a prompt defines, if it is a program: helpers, imports; not the functions that it asks for."""
    names: dict[str, Any] = {"__name__": "prompt"}
    try:
        tree = ast.parse(source)
        exec(compile(tree, "<prompt>", "exec"), names)
    except Interruption:
        raise
    except BaseException:
        return {}
    asked = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and all(map(_is_empty, node.body))}
    return {name: value for name, value in names.items() if name not in asked and not name.startswith("__")}


def _is_empty(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


_clock_runs = False


def _start_clock(seconds: float) -> None:
    """Raise `Interruption` in this thread after some seconds, again and again until the clock is stopped."""
    global _clock_runs
    _clock_runs = True
    signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)


def _stop_clock() -> None:
    global _clock_runs
    _clock_runs = False
    signal.signal(signal.SIGALRM, signal.SIG_IGN)


def _ring(_signal: int, _frame: FrameType | None) -> None:
    if _clock_runs:
        raise Interruption
