"""Checks replies against the types of OpenAI's own client, strictly: nothing missing, nothing of a wrong type, and
nothing besides except under ``ets``."""

from __future__ import annotations

from typing import Any, TypeVar

import pydantic
from openai import BaseModel

M = TypeVar("M", bound=BaseModel)


def conforming(kind: type[M], reply: Any) -> M:
    """Return a reply, parsed; fail if it is not what OpenAI would have sent."""
    parsed = pydantic.TypeAdapter(kind).validate_python(reply, strict=True)
    _check_extras(parsed, kind.__name__)
    return parsed


def _check_extras(value: Any, where: str) -> None:
    if isinstance(value, list):
        for index, each in enumerate(value):
            _check_extras(each, f"{where}[{index}]")
    elif isinstance(value, BaseModel):
        unknown = set(value.model_extra or {}) - {"ets"}
        assert not unknown, f"{where} has {unknown}"
        for name in type(value).model_fields:
            _check_extras(getattr(value, name), f"{where}.{name}")
