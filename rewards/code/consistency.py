"""Programs judged by agreement on what they do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from typing import Any

from backends import Completion, Prompt
from rewards._attempts import attempts, failures
from rewards.code import settings
from rewards.code.extract import asked_function, programs, prompt_code, sources
from rewards.errors import RewardError, RewardSpecError
from rewards.registry import register
from rewards.sandbox import Sandbox, SandboxName
from rewards.sandbox.harness import Task, run_inputs
from rewards.voting import VotingReward

_CONTINUED = re.compile(r"\n[ \t]*\.\.\.[ \t]?")
_MOST_EXAMPLES = 100
_LONGEST_EXAMPLE = 1000
"""Characters."""
_TOKEN = re.compile(r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"|[()\[\]{}]|\n\n""")


@register("code_consistency", pure=True)
class CodeConsistency(VotingReward):
    """Reward 1 for programs that do what most draws of the group do, 0 for others; no oracle, a group reward.

    The honest reward where tests are hidden: programs are run on inputs, and vote for what comes back, not for how they
    are written. The inputs are given, or are the calls in the examples of the prompt's docstring; what the examples say
    of the results is not used. See `VotingReward` for how votes are counted.

    Two programs do the same if for each input they return equal values (floats to 9 significant digits), or raise the
    same class of exception. One that does not load, or fails on every input, has no vote and reward 0.
    """

    time_limit = None

    def __init__(
        self,
        inputs: list[str | list[Any]] | None = None,
        prompt: str | None = None,
        entry_point: str | None = None,
        timeout: float = 5.0,
        memory_mb: int = 512,
        sandbox: SandboxName | Sandbox = "auto",
        accumulate: bool = False,
    ) -> None:
        """Set the inputs.

        Args:
            inputs: For each run the list of arguments of the entry point, or an expression as text, such as
                ``"f({1, 2})"``; by default, the calls of the entry point in the prompt's docstring.
            prompt: The beginning of a program that a response may continue; by default, what it responds to.
            entry_point: The function to call; by default, the last that the prompt defines.
            timeout: Seconds for all inputs of one program.
            memory_mb: MiB of memory for one program.
            sandbox: ``"bubblewrap"``, ``"docker"``, whichever works (``"auto"``), or ``"unsafe"`` for none.
            accumulate: Keep the votes of earlier steps for the rest of a run; see `VotingReward`.

        Raises:
            RewardSpecError: There is nothing to run, or a limit is none.
            SandboxUnavailableError: There is no working sandbox; the message says what to do.
        """
        super().__init__(accumulate=accumulate)
        if entry_point is not None and not entry_point.isidentifier():
            raise RewardSpecError(f"entry_point must be the name of a function, not {entry_point!r}")
        if inputs is not None and not inputs:
            raise RewardSpecError("inputs is empty: give lists of arguments, or expressions as text")
        self._inputs = inputs
        self._prompt = prompt
        self._entry_point = entry_point
        self.timeout = timeout
        self._limits = settings.limits(timeout, memory_mb)
        self._sandbox = settings.chosen(sandbox)
        if prompt is not None:
            try:
                self._what_to_run(prompt)
            except RewardError as error:
                raise RewardSpecError(str(error)) from None

    async def ballots(self, prompt: Prompt, completions: Sequence[Completion]) -> list[str | None]:
        """Return what each program does.

        Raises:
            RewardError: There is nothing to run.
            SandboxError: No program could be run.
        """
        before = prompt_code(prompt) if self._prompt is None else self._prompt
        entry_point, inputs = self._what_to_run(before)
        task = Task(prompt=before, entry_point=entry_point, seconds=self.timeout, limits=self._limits)
        found = [programs(completion.text, entry_point) for completion in completions]
        distinct = list(dict.fromkeys(found))

        async def behavior(codes: tuple[str, ...]) -> list[str | None] | None:
            return await run_inputs(self._sandbox, sources(codes, before, entry_point), inputs, task)

        outcomes = dict(zip(distinct, await attempts(behavior, distinct), strict=True))
        failed = failures(list(outcomes.values()), what=f"reward {self.label!r}")
        if all(isinstance(outcome, list) and set(outcome) == {None} for outcome in outcomes.values()):
            raise RewardError(f"code_consistency: no input is an expression, such as {inputs[0]!r:.80}")
        self.problems = [f"{len(failed)} programs could not be run: {failed[0]}"] if failed else []
        return [_ballot(outcomes[codes]) for codes in found]

    def answer(self, completion: Completion) -> str | None:
        """Return the program as it is written in the completion."""
        return programs(completion.text, self._entry_point)[0].strip() or None

    def _what_to_run(self, prompt: str) -> tuple[str | None, Sequence[str | list[Any]]]:
        """Return the entry point and the inputs.

        Raises:
            RewardError: There are none.
        """
        entry_point = self._entry_point or asked_function(prompt)
        if self._inputs is not None:
            if entry_point is None and any(isinstance(each, list) for each in self._inputs):
                raise RewardError("code_consistency: the inputs are arguments; say by entry_point of which function")
            return entry_point, self._inputs
        calls = examples(prompt, entry_point) if entry_point else []
        if not calls:
            raise RewardError(
                "code_consistency has nothing to run: give inputs, or a prompt whose docstring has examples "
                f"such as '>>> {entry_point or 'f'}(1)'"
            )
        return entry_point, calls


def examples(prompt: str, function: str) -> list[str]:
    """Return the calls of a function in a prompt, in order and without repetition."""
    text = _CONTINUED.sub("\n", prompt)
    found: dict[str, None] = {}
    position = 0
    calls = re.finditer(rf"(?<![\w.])(?<!def ){re.escape(function)}[ \t]?\(", text)
    for match in islice(calls, _MOST_EXAMPLES):
        if match.start() >= position and (end := _closing(text, match.end())):
            found[" ".join(text[match.start() : end].split("\n"))] = None
            position = end
    return list(found)


def _closing(text: str, start: int) -> int:
    """Return where the parenthesis that was opened before ``start`` is closed; 0 if it is not."""
    depth = 1
    for token in _TOKEN.finditer(text, start, start + _LONGEST_EXAMPLE):
        if token[0] == "\n\n":
            return 0
        if token[0] in "([{":
            depth += 1
        elif token[0] in ")]}":
            depth -= 1
            if depth == 0:
                return token.end()
    return 0


def _ballot(outcome: list[str | None] | Exception | None) -> str | None:
    if isinstance(outcome, Exception):
        return None
    if outcome is None or all(each is None or each.startswith("!") for each in outcome):
        return ""
    return "\n".join(map(str, outcome))
