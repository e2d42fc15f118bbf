"""What ``ets mcp`` makes of its options; serving itself is tested with processes in tests/mcp_server."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from backends import MissingExtraError
from ets_agent import GuidedReasoning, RequestError, mcp_server
from tests.cli.conftest import Ets, Loader

QUESTION = "Ada has 12 apples and finds 4 more. Ben has twice as many. How many has Ben?"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[GuidedReasoning, dict[str, Any]]]:
    """What the command would serve, and how."""
    found: list[tuple[GuidedReasoning, dict[str, Any]]] = []

    async def serve_stdio(loading: mcp_server.Loading) -> None:
        async with loading.load() as reasoning:
            assert loading.policy is reasoning.policy
            assert loading.model in ("tiny/qwen3", "tiny/qwen3-small")
            found.append((reasoning, {}))

    async def serve(reasoning: GuidedReasoning, listener: socket.socket | None = None, **how: Any) -> None:
        found.append((reasoning, how if listener is None else {"at": listener.getsockname(), **how}))

    monkeypatch.setattr(mcp_server, "serve_stdio", serve_stdio)
    monkeypatch.setattr(mcp_server, "serve_http", serve)
    monkeypatch.delenv("ETS_API_KEYS", raising=False)
    return found


Served = list[tuple[GuidedReasoning, dict[str, Any]]]


def test_by_default_it_serves_the_embedded_model_over_stdio(ets: Ets, loader: Loader, served: Served) -> None:
    outcome = ets("mcp")
    assert (outcome.exit_code, outcome.stdout) == (0, "")
    assert loader.calls == [("tiny/qwen3", {})]
    ((reasoning, how),) = served
    assert how == {}
    assert list(reasoning.policy.offers) == ["self_consistency", "json_schema", "regex", "similarity"]
    assert (reasoning.places.max_concurrency, reasoning.places.max_queue) == (4, 64)
    assert reasoning.plan(QUESTION).config.max_tokens == 64


def test_every_ceiling_reaches_the_policy(ets: Ets, served: Served, tmp_path: Path) -> None:
    outcome = ets(
        *("mcp", "--max-candidates", "3", "--max-rollouts", "2", "--max-steps", "5", "--max-tokens", "77"),
        *("--max-seconds", "1.5", "--max-token-budget", "900", "--concurrency", "2", "--queue", "0"),
        *("--temperature", "0.7", "--kl-coef", "0.5", "--top-p", "0.9", "--traces", str(tmp_path)),
    )
    assert outcome.exit_code == 0, outcome.stderr
    ((reasoning, _),) = served
    policy = reasoning.policy
    assert (policy.max_candidates, policy.max_rollouts, policy.max_steps, policy.max_tokens) == (3, 2, 5, 77)
    assert (policy.max_seconds, policy.max_token_budget) == (1.5, 900)
    assert (reasoning.places.max_concurrency, reasoning.places.max_queue) == (2, 0)
    plan = reasoning.plan(QUESTION)
    assert (plan.config.max_tokens, plan.config.timeout, plan.token_budget) == (77, 1.5, 900)
    assert (plan.config.temperature, plan.config.kl_coef, plan.config.top_p) == (0.7, 0.5, 0.9)


def test_the_rewards_that_are_allowed_are_on_offer_and_no_others(ets: Ets, served: Served) -> None:
    judge = json.dumps({"name": "llm_judge", "model": "tiny/qwen3", "votes": 3})
    assert ets("mcp", "--allow-reward", "regex", "--allow-reward", "code_tests:timeout=5", "--allow-reward", judge)
    ((reasoning, _),) = served
    offers = reasoning.policy.offers
    assert list(offers) == ["regex", "code_tests", "llm_judge"]
    assert offers["code_tests"].caller_arguments == ("test", "prompt", "entry_point")
    assert offers["llm_judge"].caller_arguments == ("rubric",)
    with pytest.raises(RequestError, match="no argument 'timeout' here"):
        reasoning.plan({"question": QUESTION, "reward": {"name": "code_tests", "test": "", "timeout": 60}})


def test_options_come_from_a_file_too(ets: Ets, served: Served, tmp_path: Path) -> None:
    config = tmp_path / "ets.json"
    config.write_text(
        json.dumps({"model": "tiny/qwen3-small", "allow_reward": ["regex"], "max_seconds": 9, "queue": 1})
    )
    outcome = ets("mcp", "--config", str(config), "--queue", "2")
    assert outcome.exit_code == 0, outcome.stderr
    ((reasoning, _),) = served
    assert list(reasoning.policy.offers) == ["regex"]
    assert (reasoning.policy.max_seconds, reasoning.places.max_queue) == (9, 2)


def test_over_http_it_listens_on_loopback_without_keys(ets: Ets, served: Served) -> None:
    assert ets("mcp", "--transport", "http", "--port", "0").exit_code == 0
    ((_, how),) = served
    assert (how["at"][0], how["keys"].required, how["hosts"]) == ("127.0.0.1", False, ["127.0.0.1"])


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.1", "127.0.0.2"])
def test_all_addresses_of_this_machine_alone_need_no_keys(ets: Ets, served: Served, host: str) -> None:
    arguments = ("--transport", "http", "--port", "0", "--host", host, "--allow-host", "ets.example")
    assert ets("mcp", *arguments).exit_code == 0
    ((_, how),) = served
    assert how["hosts"] == [host, "ets.example"]


def test_elsewhere_it_needs_keys(ets: Ets, served: Served, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    outcome = ets("mcp", "--transport", "http", "--host", "0.0.0.0", "--port", "0", "--api-key-file", str(keys))
    assert outcome.exit_code == 0, outcome.stderr
    ((_, how),) = served
    assert how["keys"].of_header("Bearer secret")
    assert not how["keys"].of_header("Bearer other")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--transport", "carrier"], "transport is 'carrier'; allowed: stdio, http"),
        (["--traces", "/no/such/folder"], "there is no folder /no/such/folder for traces"),
        (["--max-tokens", "0"], "--max-tokens is 0; allowed: a whole number above 0"),
        (["--max-seconds", "-1"], "--max-seconds is -1.0; allowed: a number above 0"),
        (["--temperature", "-1"], "temperature is -1.0: input should be greater than or equal to 0"),
        (["--allow-reward", "no_such"], "no reward is called 'no_such'."),
        (["--allow-reward", "regex", "--allow-reward", "regex:full=true"], "reward 'regex' is offered twice"),
        (["--allow-reward", "code_tests:timeoutt=5"], "reward 'code_tests' has no argument 'timeoutt'; allowed: entry"),
        (["--allow-reward", "code_tests:timeout=abc"], "reward 'code_tests': timeout='abc': Input should be a valid"),
        (["--allow-reward", "regex:pattern=("], "reward 'regex': pattern '(' is no regular expression"),
        (
            ["--allow-reward", "llm_judge"],
            "reward 'llm_judge' needs 'model', which callers cannot give; fix it, as in llm_judge:model=…",
        ),
        (["--proposal-temperature", "1"], "--proposal-temperature is 1.0, but there is no proposal"),
        (["--transport", "http", "--host", "192.0.2.7"], "192.0.2.7 can be reached from other machines"),
        (["--transport", "http", "--host", "0.0.0.0"], "0.0.0.0 can be reached from other machines"),
        (["--transport", "http", "--host", "no such host"], "there is no address 'no such host'"),
        (["--api-key-file", "/no/such/file"], "--api-key-file is for --transport http"),
        (["--transport", "stdio", "--port", "8001"], "--port is for --transport http"),
        (["--transport", "http", "--api-key-file", "/no/such/file"], "cannot read API keys from /no/such/file"),
    ],
)
def test_what_is_wrong_with_the_command_is_one_line_before_a_model_is_loaded(
    ets: Ets, loader: Loader, served: Served, arguments: list[str], message: str
) -> None:
    outcome = ets("mcp", *arguments)
    assert outcome.exit_code == 2
    assert outcome.stdout == ""
    assert outcome.stderr.startswith(f"ets: error: {message}")
    assert outcome.stderr.count("\n") == 1
    assert loader.calls == []


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(ets: Ets, loader: Loader) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = ets("mcp", "--transport", "http", "--port", str(port))
    assert outcome.stderr == f"ets: error: cannot listen on 127.0.0.1 port {port}: Address already in use\n"
    assert (outcome.exit_code, loader.calls) == (2, [])


def test_a_missing_sdk_is_one_line(ets: Ets, loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    outcome = ets("mcp")
    assert outcome.stderr == "ets: error: the MCP server needs mcp: pip install 'ets-agent[mcp]'\n"
    assert loader.calls == []
    with pytest.raises(MissingExtraError):
        mcp_server.check_installed()
