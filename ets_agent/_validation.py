"""Numbers that are no truth values, and plain sentences for what pydantic finds wrong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError


def _no_truth_value(value: Any) -> Any:
    """Refuse True and False, which would pass as 1 and 0: whoever wrote them meant something else."""
    if isinstance(value, bool):
        raise ValueError("allowed: a number")
    return value


Int = Annotated[int, BeforeValidator(_no_truth_value)]
Float = Annotated[float, BeforeValidator(_no_truth_value)]
StopString = Annotated[str, Field(min_length=1)]


def sentence(message: str) -> str:
    """Return pydantic's message as it stands after a colon."""
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def explain(error: ValidationError, *, what: str, allowed: Iterable[str]) -> str:
    """Return one clause for each thing that is wrong: which field, what it was and what is allowed.

    Args:
        error: What pydantic found.
        what: What a field is called here, such as ``setting``.
        allowed: Names of the fields that there are.
    """
    clauses = []
    for problem in error.errors(include_url=False):
        where = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            clauses.append(f"there is no {what} {where!r:.80}; allowed: {', '.join(allowed)}")
        elif where:
            message = sentence(problem["msg"])
            mark = ";" if message.startswith("allowed") else ":"
            clauses.append(f"{where} is {problem['input']!r:.80}{mark} {message}")
        else:
            clauses.append(problem["msg"].removeprefix("Value error, "))
    return "; ".join(clauses)
