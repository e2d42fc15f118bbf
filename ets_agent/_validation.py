"""Numbers that are no truth values, and plain sentences for what pydantic finds wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, Field, ValidationError


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


def fields_at(model: type[BaseModel], path: Iterable[int | str]) -> list[str]:
    """Return the names of the fields of the model within a model to which a path of fields and places leads."""
    for part in path:
        field = model.model_fields.get(str(part))
        if field is not None:  # Otherwise it is a place in a list, or the name of an alternative.
            model = next(_models_in(field.annotation), model)
    return list(model.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def explain(error: ValidationError, model: type[BaseModel], *, what: str) -> str:
    """Return one clause for each thing that is wrong: which field, what it was and what is allowed.

    Args:
        error: What pydantic found.
        model: What was to be made.
        what: What a field is called here, such as ``setting``.
    """
    clauses = []
    for problem in error.errors(include_url=False):
        where = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            allowed = ", ".join(fields_at(model, problem["loc"][:-1]))
            clauses.append(f"there is no {what} {where!r:.80}; allowed: {allowed}")
        elif where:
            message = sentence(problem["msg"])
            mark = ";" if message.startswith("allowed") else ":"
            clauses.append(f"{where} is {problem['input']!r:.80}{mark} {message}")
        else:
            clauses.append(problem["msg"].removeprefix("Value error, "))
    return "; ".join(clauses)
