"""What models are told, and what is said where a framework is missing."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest

from backends.scripted import ScriptedBackend
from ets_agent import GuidedAnswer, Usage
from ets_agent.adapters._reply import ask, for_model, for_model_error
from tests.adapters.conftest import Asked, until_active


def answer(**fields: object) -> GuidedAnswer:
    values = {
        "answer": "42",
        "text": "12 + 30 = 42\n#### 42",
        "confidence": 0.87654321,
        "reward": 1.0,
        "cut_short": False,
        "finish_reason": "stop",
        "usage": Usage(),
        "seed": 1,
        "model": "m",
        "trace_id": "t",
    }
    return GuidedAnswer.model_validate(values | fields)


def test_a_final_answer_is_told_without_its_text() -> None:
    assert for_model(answer()) == '{"answer":"42","confidence":0.877,"cut_short":false}'


def test_a_text_without_a_final_answer_is_told() -> None:
    told = for_model(answer(answer=None, text='Grüße\n"so"', confidence=None))
    assert told == '{"answer":null,"text":"Grüße\\n\\"so\\"","confidence":null,"cut_short":false}'


def test_warnings_and_haste_are_told() -> None:
    told = json.loads(for_model(answer(cut_short=True, warnings=("w1", "w2"))))
    assert (told["cut_short"], told["warnings"]) == (True, ["w1", "w2"])


def test_an_error_is_told_as_json() -> None:
    assert for_model_error("no\n") == '{"error":"no\\n"}'


async def test_an_answer_that_never_began_says_so() -> None:
    async with Asked(ScriptedBackend(["a"], delay=60), max_concurrency=1) as busy:
        first = asyncio.create_task(ask(busy, {"question": "q"}))
        await until_active(busy)
        told = json.loads(await ask(busy, {"question": "q", "timeout": 0.01}))
        first.cancel()
        await asyncio.wait([first])
    assert told == {
        "answer": None,
        "text": "",
        "confidence": None,
        "cut_short": True,
        "warnings": ["all places were taken until the time was over"],
    }


def test_importing_the_adapters_imports_no_framework() -> None:
    program = (
        "import sys\n"
        "from ets_agent.adapters import langchain, openai_agents, openai_tools, pydantic_ai\n"
        "print([n for n in ('agents', 'pydantic_ai', 'langchain_core', 'litellm', 'openai') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("openai_agents", "agents", "openai-agents"),
        ("pydantic_ai", "pydantic_ai", "pydantic-ai"),
        ("langchain", "langchain_core", "langchain"),
    ],
)
def test_a_missing_framework_is_named_with_the_command_that_installs_it(module: str, package: str, extra: str) -> None:
    program = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "import backends\n"
        "from backends.scripted import ScriptedBackend\n"
        "from ets_agent import GuidedReasoning\n"
        f"from ets_agent.adapters import {module}\n"
        f"try: {module}.tool(GuidedReasoning(ScriptedBackend(['a'])))\n"
        "except backends.MissingExtraError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert f"pip install 'ets-agent[{extra}]'" in done.stdout, done.stderr
