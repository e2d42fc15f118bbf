"""JSON as the standard has it, where Python's reader is more generous."""

from __future__ import annotations


def no_constant(name: str) -> None:
    """Refuse NaN and Infinity: the ``parse_constant`` of `json.loads`.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"{name} is no JSON")
