"""Find the program in a response: in a Markdown fence, bare, or as the continuation of a prompt.

Text is only cut here, by patterns that take linear time. Whether something is Python is for the sandbox to find out, as
a text can be written to crash what parses it; so there are several forms of a program to try.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from backends import Prompt
from rewards.sandbox.harness import Source

_FENCE = re.compile(r"([ \t]{0,32}(?:>[ \t]?)?)(`{3,}|~{3,})([^\n`]*)")
_FENCE_END = re.compile(r"^[ \t]{0,3}(?:```|~~~)[ \t]*$", re.MULTILINE)
_LANGUAGE = re.compile(r"[ \t]*\{?[ \t]*\.?([\w+#-]*)")
_PYTHON = frozenset({"python", "python3", "py", "py3", "python2", "ipython", "ipython3", "pycon", "cpython", "sage"})
_CODE_BEGINS = re.compile(r"^(?:async def |def |class |import |from [\w.]+ import |@\w)", re.MULTILINE)
_DEFINITION = re.compile(r"^[ \t]*(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)", re.MULTILINE)
_FUNCTION = re.compile(r"^(?:async[ \t]+)?def[ \t]+(\w+)", re.MULTILINE)
_INDENT = "    "


def programs(text: str, entry_point: str | None = None) -> tuple[str, ...]:
    """Return what may be the program in a response, most likely first; at least one text.

    That is the last Python fence that defines the entry point, then the longest that defines anything; fences without
    a language after those of Python, other languages never. Where a fence began in the prompt, it is what comes before
    its end. Without a fence it is the text itself, and what of it begins like a program.
    """
    text = text.replace("\r\n", "\n")
    head, text = _begun_in_prompt(text)
    fences = list(_fences(text))
    python = [code for language, code in fences if language in _PYTHON]
    plain = [code for language, code in fences if not language]
    found = [head, *_preferred(python, entry_point), *_preferred(plain, entry_point)]
    if not any(found):
        begins = _CODE_BEGINS.search(text)
        found = [text, text[begins.start() :] if begins else ""]
    if entry_point is not None:
        found.sort(key=lambda code: not _defines(code, entry_point))
    return tuple(dict.fromkeys(code.rstrip() for code in found if code.strip())) or ("",)


def sources(codes: Sequence[str], prompt: str, entry_point: str | None) -> list[Source]:
    """Return the forms in which a program may be complete, by preference.

    A program that defines the entry point comes after the prompt, for the imports and helpers of that, or by itself;
    another one is first taken to continue the prompt, as it is or with indentation that was lost.
    """
    forms: list[Source] = []
    for code in codes:
        whole = [(f"{prompt}\n\n", code), ("", code)] if prompt else [("", code)]
        if not prompt or entry_point is None or _defines(code, entry_point):
            forms += whole
            continue
        body = code.lstrip("\n")
        indented = "\n".join(_INDENT + line if line.strip() else line for line in body.split("\n"))
        forms += [(prompt, code), (f"{prompt}\n", _INDENT + body.lstrip()), (f"{prompt}\n", indented), *whole]
    return list(dict.fromkeys(forms))


def prompt_code(prompt: Prompt) -> str:
    """Return the program that a prompt holds, "" if it holds none: of a chat, that of the user's last message.

    A question in words may be Python by accident, such as "Why".
    """
    if not isinstance(prompt, str):
        prompt = next((message["content"] for message in reversed(prompt) if message["role"] == "user"), "")
    fenced = [code for language, code in _fences(prompt) if language in _PYTHON or not language]
    if fenced:
        return max(fenced, key=len)
    return prompt if _CODE_BEGINS.search(prompt) else ""


def asked_function(prompt: str) -> str | None:
    """Return the name of the function that a prompt asks for: the last that it begins."""
    names = _FUNCTION.findall(prompt)
    return names[-1] if names else None


def _begun_in_prompt(text: str) -> tuple[str, str]:
    """Return the program before the end of a fence that began before the text, "" if there is none, and the rest."""
    end = _FENCE_END.search(text)
    if end is None:
        return "", text
    head = text[: end.start()]
    first = head.lstrip("\n")
    is_code = first[:1] in (" ", "\t") or _CODE_BEGINS.match(first)
    if is_code and not any(map(_FENCE.fullmatch, head.split("\n"))):
        return head, text[end.end() :]
    return "", text


def _fences(text: str) -> Iterator[tuple[str, str]]:
    """Return language and content of each fence."""
    opened: re.Match[str] | None = None
    lines: list[str] = []
    for line in text.split("\n"):
        match = _FENCE.fullmatch(line)
        if opened is None:
            opened, lines = match, []
        elif match and match[2].startswith(opened[2]) and not match[3].strip():
            yield _fence(opened, lines)
            opened = None
        else:
            lines.append(line)
    if opened is not None:
        yield _fence(opened, lines)


def _fence(opened: re.Match[str], lines: list[str]) -> tuple[str, str]:
    language = _LANGUAGE.match(opened[3])
    return language[1].lower() if language else "", "\n".join(line.removeprefix(opened[1]) for line in lines)


def _preferred(codes: Sequence[str], entry_point: str | None) -> list[str]:
    """Return the last that defines the entry point, and the longest that defines anything, or of all."""
    defining = [code for code in codes if entry_point is not None and _defines(code, entry_point)]
    others = [code for code in codes if _DEFINITION.search(code)] or codes
    return [*defining[-1:], *sorted(others, key=len)[-1:]]


def _defines(code: str, name: str) -> bool:
    return any(match[1] == name for match in _DEFINITION.finditer(code)) or bool(
        re.search(rf"^{re.escape(name)}[ \t]*=", code, re.MULTILINE)
    )
