"""What a program returned, as a text that is equal where the values are."""

from __future__ import annotations

import json
import math
import re
import sys
from itertools import islice

from rewards.sandbox.inside.remote import Remote

TYPE_CHECKING = False  # Importing `typing` would take longer than what is done here.
if TYPE_CHECKING:
    from typing import Any

_MOST_ITEMS = 10_000
_LONGEST = 1000
_EXACT = 1 << 53
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def canonical(value: Any) -> str:
    """Return a value's canonical form: a short text, the same for values that are equal.

    Numbers are equal as in Python, floats to 9 significant digits, and not-a-number to itself. Sets and dicts have no
    order. An iterator is what it yields. An object of the program is its class and what it says of itself.

    Raises:
        Exception: What the program raised while it was asked.
    """
    form = _form(value)
    if len(form) <= _LONGEST:
        return form
    import hashlib

    return hashlib.sha256(form.encode(errors="replace")).hexdigest()


def _form(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, bytes | bytearray):
        return f"b{bytes(value).hex()}"
    if isinstance(value, tuple):
        return f"({','.join(map(_form, value))})"
    if isinstance(value, list):
        return f"[{','.join(map(_form, value))}]"
    if isinstance(value, set | frozenset):
        return f"{{{','.join(sorted(map(_form, value)))}}}"
    if isinstance(value, dict):
        return f"{{{','.join(sorted(f'{_form(key)}:{_form(item)}' for key, item in value.items()))}:}}"
    if hasattr(type(value), "__next__"):
        return f"iterator{_form(list(islice(value, _MOST_ITEMS)))}"
    if isinstance(value, Remote):
        return f"<{type(value).__name__} {_ADDRESS.sub('', repr(value))}>"
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        return f"array{_form(value.tolist())}"
    if numpy is not None and isinstance(value, numpy.generic):
        return _form(value.item())
    return _number(value)


def _number(value: Any) -> str:
    if isinstance(value, complex):
        return _number(value.real) if value.imag == 0 else f"{_number(value.real)}+{_number(value.imag)}j"
    if isinstance(value, int):
        return hex(value)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return f"{type(value).__name__} {value!r}"
    if not math.isfinite(number):
        return str(number)
    rounded = number if number.is_integer() and abs(number) < _EXACT else float(f"{number:.9g}")
    return hex(int(rounded)) if rounded.is_integer() else repr(rounded)
