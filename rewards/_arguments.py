"""Arguments of rewards: read from a specification string and checked against a constructor's signature."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from rewards.errors import RewardSpecError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_KEY = re.compile(r"\s*([^\W\d]\w*)\s*=")
_NEXT_KEY = re.compile(r",(?=\s*[^\W\d]\w*\s*=)")
_END_OF_VALUE = re.compile(r"\s*(?:$|,(?=\s*[^\W\d]\w*\s*=))")
_CHECKED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardParameter:
    """One parameter of a reward.

    Attributes:
        name: What a specification calls it.
        declaration: How it is declared, such as ``"accumulate: bool = False"``.
        required: Whether a reward cannot be built without it.
    """

    name: str
    declaration: str
    required: bool


class Written:
    """A value that was written as JSON, and how it was written, which may be what was meant: ``gold=21``."""

    def __init__(self, value: Any, text: str) -> None:
        """Keep both."""
        self.value = value
        self.text = text


def parse(text: str) -> dict[str, Any]:
    """Read ``key=value,key=value``.

    A value is JSON if it is a JSON literal, otherwise text up to the next ``,key=``; so ``gold=1,234`` is one argument.
    Literals come `Written`, because a parameter that takes text alone has them as they are written.

    Raises:
        RewardSpecError: The text is not of this form, or a key occurs twice.
    """
    arguments: dict[str, Any] = {}
    position = 0
    while True:
        key = _KEY.match(text, position)
        if key is None:
            raise RewardSpecError(
                f"expected key=value after the colon, or after a comma, but found {text[position:]!r}"
            )
        if key[1] in arguments:
            raise RewardSpecError(f"argument {key[1]!r} is given twice")
        value, end = _value(text, key.end())
        if isinstance(value, str) and value.endswith(","):
            raise RewardSpecError(f"expected key=value after the last comma of {text!r}")
        written = text[key.end() : None if end is None else text.rindex(",", key.end(), end)].strip()
        arguments[key[1]] = value if isinstance(value, str) else Written(value, written)
        if end is None:
            return arguments
        position = end


class Parameters:
    """What a reward takes: the parameters of a constructor, or those of a judge that are keyword-only."""

    def __init__(self, source: Callable[..., Any], takes: Callable[[inspect.Parameter], bool]) -> None:
        """Look at the signature; see `of_constructor` and `of_judge`.

        Raises:
            TypeError: There is none.
            ValueError: There is none.
        """
        as_written = inspect.signature(source)
        self._described = tuple(
            RewardParameter(
                name=parameter.name,
                declaration=_declaration(parameter),
                required=parameter.kind in _CHECKED and parameter.default is parameter.empty,
            )
            for parameter in as_written.parameters.values()
            if takes(parameter)
        )
        try:
            signature = inspect.signature(source, eval_str=True)
        except NameError:  # Names imported for type checkers only: the types of such a constructor go unchecked.
            signature = as_written
        taken = [parameter for parameter in signature.parameters.values() if takes(parameter)]
        self._named = {parameter.name: parameter for parameter in taken if parameter.kind in _CHECKED}
        self._any_other = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken)

    @classmethod
    def of_constructor(cls, kind: type) -> Parameters:
        """Return the parameters with which an object is made."""
        return cls(kind, lambda parameter: True)

    @classmethod
    def of_judge(cls, function: Callable[..., Any]) -> Parameters:
        """Return those parameters of a function that are no response and no prompt."""
        return cls(function, lambda parameter: parameter.kind is parameter.KEYWORD_ONLY and parameter.name != "prompt")

    def describe(self) -> tuple[RewardParameter, ...]:
        """Return them as people are told of them."""
        return self._described

    def check(self, arguments: Mapping[str, Any], *, besides: Collection[str] = ()) -> dict[str, Any]:
        """Return arguments by keyword, checked against the names and annotations; those named besides may be missing.

        Types are strict: text is no number, a number is no truth value, and NaN and infinity are no numbers. Lists may
        stand for tuples and sets, and text for enumerations and paths, because JSON has no other way to write them.

        Raises:
            RewardSpecError: An argument is unknown, missing or of the wrong type; names all of them.
        """
        problems = [
            f"unknown argument {name!r}" for name in arguments if name not in self._named and not self._any_other
        ]
        checked = {name: given.value if isinstance(given, Written) else given for name, given in arguments.items()}
        for name, parameter in self._named.items():
            if name in arguments:
                try:
                    checked[name] = _fitting(parameter.annotation, arguments[name])
                except ValueError as error:
                    problems.append(f"{name}={checked[name]!r:.80}: {error}")
            elif parameter.default is parameter.empty and name not in besides:
                problems.append(f"missing argument {name!r}")
        if problems:
            takes = ", ".join(parameter.declaration for parameter in self._described) or "no arguments"
            problem = "; ".join(problems)
            raise RewardSpecError(f"{problem} (it takes: {takes})", problem=problem)
        return checked

    def schemas(self, description: str) -> dict[str, dict[str, Any]]:
        """Return their JSON schemas, those left out whose type has nothing to do with JSON.

        What has no type may be anything.

        Args:
            description: The documentation, with a section ``Args:`` in Google's style.
        """
        texts = _documented(description)
        found: dict[str, dict[str, Any]] = {}
        for name, parameter in self._named.items():
            schema = _schema(parameter.annotation)
            if schema is None:
                continue
            if name in texts:
                schema["description"] = texts[name]
            if parameter.default is not parameter.empty:
                schema["default"] = _json(parameter.default)
            found[name] = schema
        return found


def _fitting(annotation: Any, given: Any) -> Any:
    """Return an argument as its annotation has it; what is no such literal may have been meant as text.

    Raises:
        ValueError: It does not fit.
    """
    if not isinstance(given, Written):
        return _validated(annotation, given)
    try:
        return _validated(annotation, given.value)
    except ValueError:
        if _takes_text(annotation):
            with contextlib.suppress(ValueError):
                return _validated(annotation, given.text)
        raise


def _schema(annotation: Any) -> dict[str, Any] | None:
    from pydantic import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError, PydanticUserError
    from pydantic.json_schema import GenerateJsonSchema

    class Quiet(GenerateJsonSchema):
        # Of a choice, what JSON cannot say is left out, such as a function in place of its name.
        ignored_warning_kinds = {"skipped-choice"}  # noqa: RUF012 - so declared by pydantic

    if annotation is inspect.Parameter.empty:
        return {}
    if isinstance(annotation, str):
        return None
    try:
        return _adapter(annotation).json_schema(schema_generator=Quiet)
    except (PydanticInvalidForJsonSchema, PydanticSchemaGenerationError, PydanticUserError):
        return None


def _json(value: Any) -> Any:
    """Return a default as JSON has it, None for one that it cannot hold."""
    from pydantic_core import PydanticSerializationError, to_jsonable_python

    try:
        return json.loads(json.dumps(to_jsonable_python(value), allow_nan=False))
    except (PydanticSerializationError, ValueError):
        return None


def _documented(description: str) -> dict[str, str]:
    """Return what a section ``Args:`` says of each parameter."""
    _, _, section = description.partition("Args:\n")
    texts: dict[str, str] = {}
    name = None
    for line in section.splitlines():
        start = re.match(r"    (\w+): (.*)", line)
        if start:
            name = start[1]
            texts[name] = start[2].strip()
        elif name is not None and line.startswith("        "):
            texts[name] += f" {line.strip()}"
        else:
            name = None
    return texts


def _takes_text(annotation: Any) -> bool:
    """Return whether plain text is among the types that are allowed, not only text of a certain form."""
    return annotation is str or (str in get_args(annotation) and not {int, float} & set(get_args(annotation)))


def _value(text: str, start: int) -> tuple[Any, int | None]:
    start += len(text[start:]) - len(text[start:].lstrip())
    try:
        value, stop = json.JSONDecoder().raw_decode(text, start)
        end = _END_OF_VALUE.match(text, stop)
    except (ValueError, RecursionError):
        end = None
    if end is None:
        end = _NEXT_KEY.search(text, start)
        value = text[start : end.start() if end else None].strip()
    return value, end.end() if end and text[end.start() :].lstrip().startswith(",") else None


def _declaration(parameter: inspect.Parameter) -> str:
    if isinstance(parameter.annotation, str):  # as in the source, where `str` of the parameter would show quotes
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        return f"{parameter.name}: {parameter.annotation}{default}"
    return str(parameter)


def _validated(annotation: Any, value: Any) -> Any:
    from pydantic import ValidationError

    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return value
    adapter = _adapter(annotation)
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        refused = error
    try:
        return adapter.validate_json(json.dumps(value))
    except (TypeError, ValueError):
        messages = dict.fromkeys(problem["msg"] for problem in refused.errors(include_url=False))
        raise ValueError(" or ".join(messages)) from None


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    # Imported here because pydantic takes longer to import than all of this package.
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter

    try:
        return TypeAdapter(
            annotation, config=ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
        )
    except PydanticUserError:  # Models and dataclasses bring a configuration of their own.
        return TypeAdapter(annotation)
