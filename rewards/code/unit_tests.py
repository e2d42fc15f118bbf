"""Programs judged by tests."""

from __future__ import annotations

import re
from collections.abc import Hashable

from backends import Completion, Prompt
from rewards.code import settings
from rewards.code.extract import programs, prompt_code, sources
from rewards.errors import RewardSpecError
from rewards.pointwise import PointwiseReward
from rewards.registry import register
from rewards.sandbox import Sandbox, SandboxName
from rewards.sandbox.harness import Task, run_tests

_CHECK = re.compile(r"^def[ \t]+check[ \t]*\(", re.MULTILINE)
_CHECK_CALL = re.compile(r"^(?!def)[^#\n]*\bcheck[ \t]*\(", re.MULTILINE)


@register("code_tests", pure=True)
class CodeTests(PointwiseReward):
    """Reward programs by the fraction of tests that they pass; an oracle where the tests are hidden.

    It is an oracle, and says nothing about how well a task would be solved without it, where the tests are those that
    the answer is evaluated by. It is honest where tests came with the task. Where there are none, see
    ``code_consistency``.

    Every ``assert`` is a test. It passes if it was reached and held each time; one that fails does not keep others from
    being reached. A text without any is one test, passed if nothing raises. A response without a program that loads
    gets 0.

    Programs run in a sandbox, and in another process than the tests: objects that equal everything, ``sys.exit`` or
    printing do not pass a test. What is no data stays in the program's process and is asked there; such an object never
    equals data, and is compared or combined with data only if the tests name its class.
    """

    minimum, maximum = 0.0, 1.0
    judgment_limit = None  # The sandbox keeps the time, from when it is a program's turn.
    time_limit = None

    def __init__(
        self,
        test: str | list[str],
        prompt: str | None = None,
        entry_point: str | None = None,
        timeout: float = 5.0,
        memory_mb: int = 512,
        sandbox: SandboxName | Sandbox = "auto",
    ) -> None:
        """Set the tests.

        Args:
            test: Python text with assertions about what the program defines, or in HumanEval's format: with a function
                ``check``, which is called with the entry point. Or a list of such texts, run one after another.
            prompt: The beginning of a program that a response may continue; by default, what it responds to. Its
                imports and helpers are there for the tests.
            entry_point: The function that is tested.
            timeout: Seconds for all tests of one program.
            memory_mb: MiB of memory for one program.
            sandbox: ``"bubblewrap"``, ``"docker"``, whichever works (``"auto"``), or ``"unsafe"`` for none.

        Raises:
            RewardSpecError: There is no test, or no entry point for ``check``, or a limit is none.
            SandboxUnavailableError: There is no working sandbox; the message says what to do.
        """
        self._tests = [test] if isinstance(test, str) else list(test)
        if not self._tests or not all(text.strip() for text in self._tests):
            raise RewardSpecError("test must be Python text, or a list of such texts, that is not empty")
        if entry_point is not None and not entry_point.isidentifier():
            raise RewardSpecError(f"entry_point must be the name of a function, not {entry_point!r}")
        if entry_point is None and any(_CHECK.search(text) and not _CHECK_CALL.search(text) for text in self._tests):
            raise RewardSpecError("test has a function check(candidate): say by entry_point which function to check")
        self._prompt = prompt
        self._entry_point = entry_point
        self.timeout = timeout
        self._limits = settings.limits(timeout, memory_mb)
        self._sandbox = settings.chosen(sandbox)

    def identity(self, completion: Completion) -> Hashable:
        """Return the program."""
        return programs(completion.text, self._entry_point)

    async def judge(self, prompt: Prompt, completion: Completion) -> float:
        """Return the fraction of tests passed.

        Raises:
            SandboxError: The program could not be run.
            RewardError: The tests are no Python.
        """
        before = prompt_code(prompt) if self._prompt is None else self._prompt
        forms = sources(programs(completion.text, self._entry_point), before, self._entry_point)
        task = Task(prompt=before, entry_point=self._entry_point, seconds=self.timeout, limits=self._limits)
        verdict = await run_tests(self._sandbox, forms, self._tests, task)
        return verdict.passed / verdict.total

    def answer(self, completion: Completion) -> str | None:
        """Return the program as it is written in the completion."""
        return programs(completion.text, self._entry_point)[0].strip() or None
