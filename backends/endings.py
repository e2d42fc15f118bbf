"""Whether two models' responses end alike, going by what one of them has drawn and the other one scores.

Importance weights need that. Where only the proposal goes on after a token, it never draws the response that is over
there; where only the proposal ends, its whole responses are beginnings of others to the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from backends.base import Completion
from backends.errors import TokenizerMismatchError

_REMEDY = (
    "importance weights need two models whose responses end alike, so take two of one kind (both base, or both chat "
    "models), or give both the same eos_token_id in their generation_config.json (vLLM: --generation-config FOLDER)"
)


def ended_by(completion: Completion, stop: tuple[str, ...]) -> int | None:
    """Return the token that ended a completion for the model that drew it; None where it was none, or may be.

    With stop strings, the last token may be of one of them.
    """
    ids = completion.token_ids
    return ids[-1] if ids and completion.finish_reason == "stop" and not stop else None


def gone_past(completion: Completion) -> tuple[int, ...]:
    """Return the tokens of a completion that did not end it for the model that drew it."""
    ids = completion.token_ids
    return ids[:-1] if completion.finish_reason == "stop" else ids


def refuse_other_endings(
    name: str, ended: Iterable[int], past: Iterable[int], ends: Callable[[int], bool | None]
) -> None:
    """Refuse completions of a model whose responses end otherwise than those of the model that scores them.

    Args:
        name: The model that scores.
        ended: Tokens that ended responses of the other model.
        past: Tokens after which responses of the other model went on.
        ends: Whether a token ends a response of the model that scores; None where that is not known.

    Raises:
        TokenizerMismatchError: With what to do.
    """
    for token in ended:
        if ends(token) is False:
            raise TokenizerMismatchError(
                f"the model that drew these completions ends responses with token {token}, which ends none of {name}; "
                f"{_REMEDY}"
            )
    for token in past:
        if ends(token):
            raise TokenizerMismatchError(
                f"the model that drew these completions goes on after token {token}, which ends responses of {name}; "
                f"{_REMEDY}"
            )
