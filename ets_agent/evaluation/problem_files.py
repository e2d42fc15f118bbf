"""Problems from a file: JSON lines with a ``question`` and its ``answer`` each, GSM8K's among them."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

from ets_agent.errors import ConfigError
from rewards.answers import stated_answer


@dataclass(frozen=True, slots=True)
class FileProblem:
    """One problem of a file.

    Attributes:
        question: What is asked.
        answer: The right final answer.
    """

    question: str
    answer: str


def read_problems(path: str | os.PathLike[str], limit: int | None = None) -> list[FileProblem]:
    r"""Return the problems of a file, from its beginning.

    Each line is a JSON object with ``question``, a text, and ``answer``, a text or a number; its other fields, and
    blank lines, do not count. An answer that is a worked solution stands for the final answer that it states, by
    ``#### 42`` at its end, as in GSM8K, or by ``\boxed{42}``.

    Args:
        path: The file, in UTF-8.
        limit: Most problems; None for all.

    Raises:
        ConfigError: The file cannot be read or has no problems, or a line is none; the message names it.
    """
    path = Path(path)
    problems: list[FileProblem] = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if limit is not None and len(problems) >= limit:
                    break
                if line.strip():
                    problems.append(_problem(f"{path}, line {number}", line))
    except OSError as error:
        raise ConfigError(f"cannot read the problems {path}: {error.strerror or error}") from error
    if not problems:
        raise ConfigError(f"there are no problems in {path}")
    return problems


def _problem(place: str, line: bytes) -> FileProblem:
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place}: this is no JSON: {error}; allowed: one object a line") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"{place}: this is no JSON object but a {type(fields).__name__}")
    for name in ("question", "answer"):
        if name not in fields:
            raise ConfigError(f"{place}: there is no {name!r}, only {', '.join(map(repr, fields)) or 'nothing'}")
    question, answer = fields["question"], fields["answer"]
    if not isinstance(question, str) or not question.strip():
        raise ConfigError(f"{place}: the question is {question!r:.80}; allowed: a text")
    fits = isinstance(answer, str | int | float) and not isinstance(answer, bool)
    if not fits or (isinstance(answer, float) and not math.isfinite(answer)) or not str(answer).strip():
        raise ConfigError(f"{place}: the answer is {answer!r:.80}; allowed: a text or a number")
    written = str(answer).strip()
    for name, text in (("question", question), ("answer", written)):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(text[error.start]):x}"
            raise ConfigError(
                f"{place}: the {name} has {half}, half of a surrogate pair; allowed: whole characters"
            ) from error
    return FileProblem(question, stated_answer(written) or written)
