"""What tests see of a program: all that they would see in one process, but for ways to deceive them."""

from __future__ import annotations

import time

import pytest

from rewards import RewardError
from rewards.sandbox import Limits, Sandbox, SandboxError, harness
from rewards.sandbox.base import MIB
from rewards.sandbox.harness import Task, Verdict, run_inputs, run_tests
from rewards.sandbox.unsafe import Unsafe


async def _verdict(sandbox: Sandbox, program: str, *tests: str, **task: object) -> tuple[int, int]:
    verdict = await run_tests(sandbox, [("", program)], tests, Task(**task))  # type: ignore[arg-type]
    return verdict.passed, verdict.total


_PASSING = {
    "data of all kinds": (
        "def f(x): return x",
        "import datetime, collections, decimal\n"
        "for x in (1, 2**70, -0.5, 'é\\ud800', b'b', None, True, [1, (2, {3: {4}})], 1j, frozenset('a'), range(3),\n"
        "          ..., decimal.Decimal('1.1'), datetime.date(2020, 1, 2), collections.Counter('aab'),\n"
        "          collections.deque([1])):\n"
        "    assert f(x) == x and type(f(x)) is type(x)\n",
    ),
    "changes of arguments": (
        "def f(a, b=None):\n    a.sort()\n    a[0].append(9)\n    b['new'] = a\n    return a",
        "inner = [1]\na = [[2], inner]\nb = {}\nresult = f(a, b=b)\n"
        "assert a == [[1, 9], [2]] and inner == [1, 9]\nassert b['new'] is a\nassert result is a",
    ),
    "generators": (
        "def f(n):\n    for i in range(n):\n        got = yield i\n        if got: yield got",
        "assert list(f(3)) == [0, 1, 2]\ng = f(2)\nassert next(g) == 0\nassert g.send('x') == 'x'\n"
        "assert next(iter(f(0)), 'none') == 'none'\nassert sum(f(4)) == 6",
    ),
    "exceptions": (
        "class Bad(ValueError):\n    pass\ndef f(x):\n    if x is None: raise Bad('none', 3)\n    return 1 / x",
        "try:\n    f(0)\n    assert False\nexcept ArithmeticError as error:\n    assert 'by zero' in str(error)\n"
        "try:\n    f(None)\n    assert False\nexcept Bad as error:\n    assert error.args == ('none', 3)\n"
        "assert issubclass(Bad, ValueError)",
    ),
    "exceptions that want arguments of their own": (
        "def f(): b'\\xff'.decode()\ndef g(): open('/nowhere')",
        "try:\n    f()\nexcept UnicodeDecodeError as error:\n    assert 'invalid start byte' in error.args[0]\n"
        "try:\n    g()\nexcept FileNotFoundError as error:\n    assert error.filename == '/nowhere'",
    ),
    "functions as arguments and results": (
        "def compose(*fs):\n    def all_(x):\n        for f in fs: x = f(x)\n        return x\n    return all_\n"
        "def by(key, xs): return sorted(xs, key=key)",
        "double = lambda x: 2 * x\nassert compose(double, str, len)(50) == 3\n"
        "assert by(lambda x: -x, [1, 3, 2]) == [3, 2, 1]\nassert by(len, ['aa', 'b']) == ['b', 'aa']\n"
        "assert callable(compose())",
    ),
    "exceptions of the tests' own functions": (
        "def f(g):\n    try:\n        return g()\n    except KeyError as error:\n        return f'no {error}'",
        "def g(): raise KeyError('k')\nassert f(g) == \"no 'k'\"",
    ),
    "iterators as arguments": (
        "def f(xs): return [x + 1 for x in xs]",
        "assert f(x for x in [1, 2]) == [2, 3]\nassert f(iter([])) == []\nassert f(map(int, '12')) == [2, 3]",
    ),
    "classes": (
        "class Stack:\n    size = 0\n    def __init__(self, *items): self.items = list(items)\n"
        "    def push(self, x): self.items.append(x)\n    def pop(self): return self.items.pop()\n"
        "    def __len__(self): return len(self.items)\n    def __contains__(self, x): return x in self.items\n"
        "    def __eq__(self, other): return isinstance(other, Stack) and self.items == other.items\n"
        "    def __repr__(self): return f'Stack{self.items}'\n    def __getitem__(self, i): return self.items[i]\n"
        "    def __bool__(self): return bool(self.items)\n    def __add__(self, n): return Stack(*self.items, n)",
        "s = Stack(1)\ns.push(2)\nassert len(s) == 2 and s.pop() == 2 and s[0] == 1\nassert 1 in s and 2 not in s\n"
        "assert s == Stack(1)\nassert s != Stack()\nassert repr(s) == str(s) == f'{s}' == 'Stack[1]'\n"
        "assert (s + 5).items == [1, 5]\ns.size = 3\nassert s.size == 3 and Stack.size == 0\n"
        "assert hasattr(s, 'items') and not Stack()\n"
        "assert isinstance(s, Stack)\nassert [x for x in s] == [1]\nassert type(s).__name__ == 'Stack'",
    ),
    "context managers, properties and static methods": (
        "import contextlib\n@contextlib.contextmanager\ndef f(x):\n    yield x + 1\n"
        "class P:\n    @property\n    def x(self): return 5\n    @staticmethod\n    def y(): return 6",
        "with f(1) as y:\n    assert y == 2\nassert P().x == 5 and P.y() == 6",
    ),
    "enumerations and other kinds of data with a class": (
        "import enum\nfrom collections import namedtuple\nclass Colour(enum.IntEnum):\n    RED = 1\n"
        "class Name(str): pass\nPoint = namedtuple('Point', 'x y')\n"
        "def f(): return Colour.RED\ndef g(): return Name('Ada')\ndef h(): return Point(1, 2)",
        "assert f() == 1 and f().name == 'RED'\nassert g() == 'Ada' and g().upper() == 'ADA' and 'd' in g()\n"
        "assert {g(): 1}['Ada'] == 1\nassert h() == (1, 2) and h().x == 1\nassert f() is Colour.RED",
    ),
    "coroutines": (
        "import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    return x + 1",
        "import asyncio\nassert asyncio.run(f(1)) == 2\nasync def g(): return await f(2)\nassert asyncio.run(g()) == 3",
    ),
    "deep recursion that ends": (
        "import sys\nsys.setrecursionlimit(20000)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)",
        "assert f(5000) == 5000",
    ),
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor\ndef f(n):\n    with ThreadPoolExecutor(4) as pool:\n"
        "        return list(pool.map(lambda x: x * x, range(n)))",
        "assert f(5) == [0, 1, 4, 9, 16]",
    ),
    "printing and reading": (
        "import sys\nprint('ready')\nprint('{}', file=sys.stderr)\ndef f():\n    print(1)\n    return 2",
        "print('x')\nassert f() == 2",
    ),
    "files of its own": (
        "def f():\n    open('a.txt', 'w').write('x')\n    return open('a.txt').read()",
        "assert f() == 'x'",
    ),
    "modules that the tests forgot to import": (
        "import math\ndef f(): return 2.5",
        "assert math.isclose(f(), 2.5) and math.floor(f()) == 2",
    ),
}


@pytest.mark.parametrize("case", _PASSING)
async def test_honest_programs_pass(sandbox: Sandbox, case: str) -> None:
    program, test = _PASSING[case]
    verdict = await run_tests(sandbox, [("", program)], [test], Task())
    assert verdict.passed == verdict.total > 0, verdict


async def test_arrays_pass(sandbox: Sandbox) -> None:
    program = "import numpy as np\ndef f(x): return np.array(x) * 2\ndef g(a): a.sort()\ndef h(a): return a.mean()"
    test = """
import numpy as np
assert np.array_equal(f([1, 2]), [2, 4]) and f([1, 2]).dtype.kind == 'i'
assert (f([1, 2]) == np.array([2, 4])).all() and f([1]).tolist() == [2]
a = np.array([2, 1])
assert g(a) is None and a.tolist() == [1, 2]
assert h(a) == 1.5 and abs(h(a) - 1.5) < 1e-9 and isinstance(h(a), float)
"""
    verdict = await run_tests(sandbox, [("", program)], [test], Task(seconds=20))
    assert verdict == Verdict(passed=4, total=4, problem="")


async def test_the_format_of_humaneval(sandbox: Sandbox) -> None:
    prompt = "import math\n\ndef poly(xs, x):\n    return sum(xs) * math.copysign(1, x)\n\ndef f(x):\n    '''Doc.'''\n"
    test = "def check(candidate):\n    assert candidate(2) == poly([2, 2], 1)\n    assert candidate(3) == 7\n"
    task = Task(prompt=prompt, entry_point="f")
    verdict = await run_tests(sandbox, [(prompt, "    return 2 * x\n")], [test], task)
    assert (verdict.passed, verdict.total) == (1, 2)


async def test_helpers_of_the_prompt_are_the_prompts(sandbox: Sandbox) -> None:
    prompt = "def poly(x):\n    return 5\n\ndef f(x):\n    pass\n"
    cheat = "def poly(x): return 0\ndef f(x): return 0\n"
    for entry_point in ("f", None):
        verdict = await run_tests(
            sandbox, [("", cheat)], ["assert f(1) == poly(1)"], Task(prompt=prompt, entry_point=entry_point)
        )
        assert (verdict.passed, verdict.total) == (0, 1)


async def test_builtins_are_the_tests_own(sandbox: Sandbox) -> None:
    cheat = "abs = sum = all = len = isinstance = lambda *_: True\ndef f(x): return None"
    assert await _verdict(sandbox, cheat, "assert all([f(1) == 2])\nassert isinstance(f(1), int)") == (0, 2)


async def test_the_first_form_that_is_a_program_is_run(sandbox: Sandbox) -> None:
    forms = [("", "def g(): return 1"), ("x = (", "nothing"), ("", "def f(): return 2"), ("", "def f(): return 3")]
    verdict = await run_tests(sandbox, forms, ["assert f() == 2"], Task(entry_point="f"))
    assert verdict.passed == 1


async def test_prose_after_a_program_is_cut_off(sandbox: Sandbox) -> None:
    forms = [("def f(x):\n", "    return x\n\nThis is what it does:\nit isn't much.\n")]
    verdict = await run_tests(sandbox, forms, ["assert f(1) == 1"], Task(entry_point="f"))
    assert verdict.passed == 1


async def test_a_program_that_does_not_load_gets_nothing(sandbox: Sandbox) -> None:
    for program in ("def f(:", "f = 1 / 0", "raise SystemExit(0)", "import os\nos._exit(0)", "", "g = 1", "No idea."):
        assert await _verdict(sandbox, program, "assert True", entry_point="f") == (0, 1), program


async def test_a_text_without_assertions_is_one_test(sandbox: Sandbox) -> None:
    assert await _verdict(sandbox, "def f(x): return 1 / x", "f(1)", "f(0)", "assert True\nf(1)") == (2, 3)


async def test_a_text_that_does_not_come_to_its_end_is_one_failure_more(sandbox: Sandbox) -> None:
    program = "def f(x): return 1 / x"
    assert await _verdict(sandbox, program, "assert f(1) == 1\nf(0)") == (1, 2)
    assert await _verdict(sandbox, program, "assert f(1) == 1\nf(0)\nassert f(1) == 1", "assert f(1) == 1") == (2, 4)


async def test_tests_passed_before_a_hang_count(sandbox: Sandbox) -> None:
    program = "def f(x):\n    while x: pass\n    return x"
    test = "assert f(0) == 0\nassert f(1) == 1\nassert f(0) == 0"
    assert await _verdict(sandbox, program, test, "assert f(0) == 0", seconds=2) == (1, 5)


async def test_tests_passed_before_a_crash_count(sandbox: Sandbox) -> None:
    program = "import os\ndef f(x):\n    if x: os._exit(0)\n    return x"
    assert await _verdict(sandbox, program, "assert f(0) == 0\nassert f(1) == 1\nassert f(0) == 0") == (1, 3)


async def test_tests_that_stop_the_clock_end_in_time(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "_START_SECONDS", 60.0)  # The sandbox itself would end them no sooner.
    test = "import signal\nassert f() == 1\nsignal.setitimer(signal.ITIMER_REAL, 0)\nsignal.pause()"
    began = time.monotonic()
    assert await _verdict(sandbox, "def f(): return 1", test, seconds=0.3) == (0, 1)
    assert time.monotonic() - began < 30


async def test_tests_that_are_no_python_are_not_the_programs_fault(sandbox: Sandbox) -> None:
    with pytest.raises(RewardError, match="the tests are no Python"):
        await run_tests(sandbox, [("", "def f(): return 1")], ["assert f( == 1"], Task())


async def test_memory_of_all_processes_together_is_limited(isolated: Sandbox) -> None:
    program = """
import os, time
def f():
    for _ in range(6):
        if os.fork() == 0:
            block = bytearray(100 * 2**20)
            time.sleep(100)
    time.sleep(100)
"""
    limits = Limits(memory_bytes=200 * MIB)
    verdict = await run_tests(isolated, [("", program)], ["assert f() == 1"], Task(limits=limits, seconds=20))
    assert (verdict.passed, verdict.total) == (0, 1)
    assert "takes too long" not in verdict.problem


async def test_files_in_memory_count_as_memory(isolated: Sandbox) -> None:
    program = """
import time
def f():
    with open("/tmp/a", "wb") as file:
        for _ in range(100):
            file.write(bytes(2**20))
    time.sleep(100)
"""
    limits = Limits(memory_bytes=64 * MIB, file_bytes=128 * MIB)
    verdict = await run_tests(isolated, [("", program)], ["assert f() == 1"], Task(limits=limits, seconds=20))
    assert "takes too long" not in verdict.problem


class _Failing(Unsafe):
    async def run(self, source: str, *arguments: str, **options: object) -> object:  # type: ignore[override]
        return await super().run("raise SystemExit('no memory')", **options)  # type: ignore[arg-type]


async def test_a_tester_that_does_not_start_is_a_failure_of_the_sandbox() -> None:
    with pytest.raises(SandboxError, match="no memory"):
        await run_tests(_Failing(), [("", "")], ["assert f() == 1"], Task())


class _Forging(Unsafe):
    """Answers for the tester, without the secret that only it is told."""

    async def run(self, source: str, *arguments: str, **options: object) -> object:  # type: ignore[override]
        forged = 'ready\\n{"passed": 1, "total": 1, "problem": "", "nonce": "0"}\\n[]\\nnonsense'
        return await super().run(f"print('{forged}')", **options)  # type: ignore[arg-type]


async def test_a_verdict_without_the_secret_is_none() -> None:
    verdict = await run_tests(_Forging(), [("", "")], ["assert f() == 1"], Task())
    assert (verdict.passed, verdict.total) == (0, 1)


async def test_inputs_give_what_a_program_does(sandbox: Sandbox) -> None:
    program = "def f(x):\n    if x < 0: raise KeyError(x)\n    return [x / 2]\ndef g(xs): xs.append(1)"
    found = await run_inputs(sandbox, [("", program)], [[4], [5], [-1], "f(4)", "f(", "g([])"], Task(entry_point="f"))
    assert found is not None
    assert found[0] == found[3] != found[1]
    assert found[2] == "! KeyError"
    assert found[4] is None
    changed = await run_inputs(sandbox, [("", program)], [[[1]], [[2]]], Task(entry_point="g"))
    assert changed is not None
    assert changed[0] != changed[1], "what is done to arguments is behaviour, too"
    assert await run_inputs(sandbox, [("", "nothing")], [[1]], Task(entry_point="f")) is None


async def test_equal_results_have_one_form(sandbox: Sandbox) -> None:
    program = "def f(x): return x"
    same = [
        ("1", "1.0", "True", "1 + 0j", "decimal.Decimal('1.0')", "fractions.Fraction(2, 2)", "np.int64(1)"),
        ("0.1 + 0.2", "0.3", "np.float64(0.3)"),
        ("float('nan')", "float('nan')"),
        ("{1, 2, 3}", "{3, 2, 1}", "frozenset([2, 3, 1])"),
        ("{1: 2, 'a': [3]}", "{'a': [3.0], 1: 2}"),
        ("[np.array([1, 2])]", "[np.array([1, 2])]"),
        ("iter([1, 2])", "(x for x in [1, 2])"),
        ("10**400",),
        ("[1]",),
        ("(1,)",),
        ("'1'",),
        ("b'1'",),
        ("None",),
        ("[]",),
        ("'x' * 10**6",),
        ("'x' * 10**6 + 'y'",),
    ]
    calls = [f"f({text})" for texts in same for text in texts]
    prompt = "import numpy as np, decimal, fractions\n"
    found = await run_inputs(sandbox, [("", program)], calls, Task(prompt=prompt, entry_point="f", seconds=20))
    assert found is not None
    forms = iter(found)
    groups = [{next(forms) for _ in texts} for texts in same]
    assert all(len(group) == 1 for group in groups), list(zip(calls, found, strict=True))
    assert len(set.union(*groups)) == len(groups)  # type: ignore[arg-type]
    assert all(len(form or "") < 2000 for form in found)


async def test_a_program_has_no_file_but_its_line_to_the_tester(sandbox: Sandbox) -> None:
    program = """
import os
def f():
    names = sorted(map(int, os.listdir("/proc/self/fd")))
    return [os.readlink(f"/proc/self/fd/{name}") for name in names if os.path.exists(f"/proc/self/fd/{name}")]
"""
    test = "files = f()\nassert files[:3] == ['/dev/null'] * 3\nassert len(files) == 5"
    assert await _verdict(sandbox, program, test) == (2, 2)


async def test_objects_are_equal_only_if_the_program_says_just_that(sandbox: Sandbox) -> None:
    program = "class Sly:\n    def __eq__(self, other): return 'yes'\ndef f(): return Sly()"
    assert await _verdict(sandbox, program, "assert f() == f()") == (0, 1)


async def test_a_module_that_the_tests_forgot_to_import_is_not_the_programs(sandbox: Sandbox) -> None:
    cheat = "class math:\n    isclose = staticmethod(lambda *_: True)\ndef f(x): return 0.0"
    assert await _verdict(sandbox, cheat, "assert math.isclose(f(1), 2.5)") == (0, 1)


async def test_only_classes_that_tests_use_may_combine_with_data(sandbox: Sandbox) -> None:
    cheat = """
class METADATA:
    def __sub__(self, other): return 0
def f(x): return METADATA()
"""
    assert await _verdict(sandbox, cheat, "METADATA = {'author': 'x'}\nassert f(1) - 2 == 0") == (0, 1)
    assert await _verdict(sandbox, cheat, "assert METADATA() - 2 == 0") == (1, 1)
