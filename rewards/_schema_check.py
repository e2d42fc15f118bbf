"""What a JSON schema has against a text, or is worth itself: small ones are checked here, others in worker processes.

To check a schema takes up to half a millisecond for each part of it, and for some lists the square of their length. A
pattern in it may take for ever.
"""

from __future__ import annotations

import functools
import json
import re
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker, SchemaError
from jsonschema.validators import validator_for
from referencing import Registry

from rewards.errors import RewardSpecError
from rewards.regex import check_syntax

_SMALL_TEXT = 2000
"""Characters, as JSON."""
_SMALL_COUNT = 50
"""Parts: values of whatever kind."""
_SMALL_DEPTH = 16


def check_small(schema: str) -> bool:
    """Check a schema if it is small, within some 20 ms, and return whether it was.

    Raises:
        RewardSpecError: It is none.
    """
    if schema[:1] != "{" and schema not in ("true", "false"):
        raise RewardSpecError("this is no JSON schema: it must be an object")
    if len(schema) > _SMALL_TEXT or not _is_small(value := json.loads(schema)):
        return False
    formats = FormatChecker(())
    formats.checks("regex", raises=(re.error, ValueError, RecursionError, OverflowError))(_is_pattern)
    _check(value, formats)
    return True


def problem(schema: str, text: str | None) -> str | None:
    """Return what a schema has against a JSON text, or None for nothing; against no text it has something, too.

    Raises:
        RewardSpecError: The schema is none.
    """
    validator = _validator(schema)
    if text is None:
        return "there is no JSON"
    error = next(validator.iter_errors(json.loads(text)), None)
    return None if error is None else str(error.message)


@functools.lru_cache(maxsize=64)
def _validator(schema: str) -> Any:
    value = json.loads(schema)
    # The default registry would fetch what a schema refers to.
    return _check(value, None)(value, registry=Registry())


def _check(schema: Any, formats: Any) -> Any:
    """Check a schema, by default with all formats, and return its kind of validator."""
    try:
        kind = validator_for(schema, default=Draft202012Validator)
        kind.check_schema(schema, **({} if formats is None else {"format_checker": formats}))
    except (SchemaError, TypeError, ValueError, AttributeError, RecursionError) as error:
        reason = error.message if isinstance(error, SchemaError) else error
        raise RewardSpecError(f"this is no JSON schema: {reason!s:.500}") from error
    return kind


def _is_small(schema: Any) -> bool:
    """Return whether a value has few parts and is not deep."""
    level, count = [schema], 0
    for _ in range(_SMALL_DEPTH):
        count += len(level)
        if count > _SMALL_COUNT:
            return False
        values = (list(each.values()) if isinstance(each, dict) else each for each in level)
        level = [part for each in values if isinstance(each, list) for part in each]
    return not level


def _is_pattern(value: object) -> bool:
    if isinstance(value, str):
        check_syntax(value)
    return True
