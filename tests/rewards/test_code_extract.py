"""Programs in responses, however they are wrapped."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.code.consistency import examples
from rewards.code.extract import asked_function, programs, prompt_code, sources

_F = "def f(x):\n    return x"
_G = "def g(x):\n    return f(x) + 1\n\nvalue = g(1)"


def test_a_bare_program_is_the_text() -> None:
    assert programs(_F + "\n", "f") == (_F,)
    assert programs(f"Sure, here it is:\n\n{_F}", "f")[1] == _F


@pytest.mark.parametrize("mark", ["```", "~~~", "````"])
@pytest.mark.parametrize("language", ["python", "", " py", "python3", "Python", "{.python}", "python title='f.py'"])
def test_a_fence_holds_the_program(mark: str, language: str) -> None:
    opening, closing = f"{mark}{language}", mark
    assert programs(f"Sure:\n{opening}\n{_F}\n{closing}\nThat's it.", "f")[0] == _F
    assert programs(f"Sure:\r\n{opening}\r\n{_F}\r\n{closing}\r\n", "f")[0] == _F


def test_a_fence_may_be_open_or_indented_or_quoted() -> None:
    assert programs(f"```python\n{_F}", "f")[0] == _F
    indented = "\n".join(f"   {line}" for line in f"```python\n{_F}\n```".split("\n"))
    assert programs(f"1. Sure:\n{indented}\n2. Done", "f")[0] == _F
    quoted = "\n".join(f"> {line}" for line in f"```python\n{_F}\n```".split("\n"))
    assert programs(quoted, "f")[0] == _F


def test_a_fence_that_began_in_the_prompt_ends_the_program() -> None:
    assert programs(f"{_F}\n```\nThis returns x.", "f")[0] == _F
    assert programs("    return x\n```\n\n```text\n1\n```", "f")[0] == "    return x"


def test_a_fence_within_longer_ones_is_text() -> None:
    doc = f"{_F}\n\nhelp = '''\n```\nf(1)\n```\n'''"
    assert programs(f"````python\n{doc}\n````", "f")[0] == doc


def test_the_last_fence_that_defines_the_entry_point_is_taken() -> None:
    usage = "print(f(1))\n" * 10
    text = f"```python\n{_F} - 1\n```\nNo, better:\n```python\n{_F}\n```\nUse:\n```python\n{usage}```"
    assert programs(text, "f")[0] == _F
    assert programs(f"```python\n{_F}\n```\n```python\n{_G}\n```", "f")[0] == _F
    assert programs(f"```\n{_F}\n```\n```python\n{_G}\n```", "f")[0] == _F, "a definition counts more than a language"


def test_without_an_entry_point_the_longest_fence_is_taken() -> None:
    assert (
        programs(f"```python\n{_F}\n```\n```python\n{_G}\n```\n```bash\npip install a-long-name-of-a-package\n```")[0]
        == _G
    )


def test_fences_of_other_languages_are_no_programs() -> None:
    assert programs(f"```bash\npython f.py\n```\n```python\n{_F}\n```\n```json\n[]\n```", "f") == (_F,)


def test_without_a_program_there_is_the_text() -> None:
    assert programs("No idea.", "f") == ("No idea.",)
    assert programs(" \n", "f") == ("",)


def test_a_definition_comes_after_the_prompt_or_by_itself() -> None:
    assert sources([_F], "import math\n", "f") == [("import math\n\n\n", _F), ("", _F)]
    assert sources([_F], "", "f") == [("", _F)]


def test_a_continuation_follows_the_prompt_and_may_have_lost_its_indentation() -> None:
    prompt = "def f(x):\n"
    forms = [before + code for before, code in sources(["y = x\n    return y"], prompt, "f")]
    assert forms[0] == "def f(x):\ny = x\n    return y"
    assert forms[1] == "def f(x):\n\n    y = x\n    return y"
    forms = [before + code for before, code in sources(["if x:\n    return y\n\nreturn x"], prompt, "f")]
    assert forms[2] == "def f(x):\n\n    if x:\n        return y\n\n    return x"


def test_a_prompt_may_be_a_chat_with_a_fence() -> None:
    chat = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": f"Complete this:\n```python\n{_F}\n```\nBe quick."},
    ]
    assert prompt_code(chat) == _F
    assert prompt_code(_F) == _F
    assert prompt_code("Why") == "", "words are no program, even if they could be"
    assert prompt_code([{"role": "system", "content": "x"}]) == ""


def test_the_function_that_a_prompt_asks_for_is_its_last() -> None:
    assert asked_function(f"{_F}\n\nasync def h(x):\n    '''Doc'''\n") == "h"
    assert asked_function("Write a function.") is None


def test_examples_are_the_calls_of_a_docstring() -> None:
    prompt = '''
def f(x, y=None):
    """Does it.

    >>> f(1)
    2
    >>> f([1, (2)], y="a)b\\"(")
    >>> f(
    ...     {1: 2},
    ... )
    f(3) == 4, and f(f(5)), not g.f(6) or off(7)
    >>> f(1)
    """
'''
    assert examples(prompt, "f") == [
        "f(1)",
        'f([1, (2)], y="a)b\\"(")',
        "f(     {1: 2}, )",
        "f(3)",
        "f(f(5))",
    ]
    assert examples("f(1", "f") == []
    assert examples("no calls", "f") == []


_PIECES = [
    "```",
    "```python\n",
    "~~~",
    "\n",
    "def f(",
    "):",
    " ",
    "    ",
    "\t",
    "'",
    '"',
    "(",
    ")",
    "[",
    "\\",
    "# ",
    "...",
]
_PIECES += [">>> f(", "f('", "'\\", "@a", "from a", "import ", "class ", "> "]
_texts = st.lists(st.sampled_from([*_PIECES, _F, "é", "\0", "\ud800", "x" * 50]), max_size=60).map("".join)


@given(_texts | st.text())
def test_no_text_is_too_odd(text: str) -> None:
    for entry_point in (None, "f"):
        codes = programs(text, entry_point)
        assert codes
        assert all(before in ("", text, f"{text}\n", f"{text}\n\n") for before, _ in sources(codes, text, entry_point))
    assert isinstance(examples(text, "f"), list)
    prompt_code(text)
    asked_function(text)


@pytest.mark.parametrize("piece", [*_PIECES, "```\n", "  ```\n", "`", "\n\n", "def ", "f("])
def test_no_text_takes_long(piece: str) -> None:
    for text in (piece * (100_000 // len(piece)), f"a\n{piece * (100_000 // len(piece))}", (piece + "\n") * 20_000):
        began = time.process_time()
        codes = programs(text, "f")
        sources(codes, text, "f")
        examples(text, "f")
        prompt_code(text)
        asked_function(text)
        assert time.process_time() - began < 1.0
