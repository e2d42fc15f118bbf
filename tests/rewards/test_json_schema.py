from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import Completion
from rewards import JSONSchema, RewardError, RewardSpecError, _schema_check, build
from rewards.json_schema import find_json

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"name": "Ada", "age": 36}', 1),
        ('Sure!\n```json\n{"name": "Ada"}\n```\nAnything else?', 1),
        ('```\n{"name": "Ada"}\n```', 1),
        ('```json\n{"name": "Ada"}', 1),
        ('First ```json\n{"age": 1}\n```\nno, better:\n```json\n{"name": "Ada"}\n```', 1),
        ('The answer is {"name": "Ada"}.', 1),
        ('{"name": "Ada", "age": -1}', 0),
        ('{"age": 36}', 0),
        ('{"name": "Ada", "city": "London"}', 0),
        ('["name"]', 0),
        ("{'name': 'Ada'}", 0),
        ('{"name": "Ada"', 0),
        ('{"name": NaN}', 0),
        ("no JSON", 0),
        ("", 0),
        ("[" * 100_000 + "]" * 100_000, 0),
        ('{"name": "Ada", "age": ' + "9" * 5000 + "}", 0),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_valid_or_not(text: str, valid: float) -> None:
    reward = build({"name": "json_schema", "schema": PERSON})
    assert await reward.score("q", [Completion(text=text)]) == [valid]


def test_answer_is_the_json_as_written() -> None:
    reward = JSONSchema(PERSON)
    assert reward.answer(Completion(text='It is {"name":  "Ada"}!')) == '{"name":  "Ada"}'
    assert reward.answer(Completion(text="{nothing}")) is None


async def test_a_specification_as_text() -> None:
    reward = build('json_schema:schema={"type": "array", "items": {"type": "number"}}')
    assert await reward.score("q", [Completion(text=t) for t in ("[1, 2.5]", '["a"]', "[]")]) == [1, 0, 1]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "thing"},
        {"properties": 3},
        {"pattern": "("},
        {"minimum": float("nan")},
        {"a": {1, 2}},
        {"$schema": 5},
        {"$schema": {}},
        {"patternProperties": {"(": {}}},
        {"pattern": "(" * 900},
        [],
        None,
    ],
)
def test_what_is_no_schema_is_refused(schema: Any) -> None:
    with pytest.raises(RewardSpecError, match="no JSON schema"):
        JSONSchema(schema)


DRAFT_4 = "http://json-schema.org/draft-04/schema#"
LARGE: dict[str, dict[str, Any]] = {
    "a list whose items are compared": {"$schema": DRAFT_4, "enum": [*({"a": i} for i in range(1500)), 1, "a"]},
    "many properties": {"properties": {f"p{i}": {} for i in range(5000)}},
    "many short parts": {"allOf": [{}] * 200},
    "a deep one": json.loads('{"not":' * 100 + "{}" + "}" * 100),
}


@pytest.mark.parametrize("schema", LARGE.values(), ids=LARGE)
def test_a_large_schema_is_checked_by_workers_alone(schema: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def check(*args: Any) -> None:
        raise AssertionError("checked in this process")

    monkeypatch.setattr(_schema_check, "_check", check)
    JSONSchema(schema)
    with pytest.raises(AssertionError):
        JSONSchema(PERSON)


async def test_a_schema_that_takes_too_long_to_check_gives_no_verdict() -> None:
    with pytest.raises(RewardError, match="took longer than 1 s of processor time"):
        await JSONSchema(LARGE["a list whose items are compared"]).score("q", [Completion(text="{}")])


@pytest.mark.parametrize("text", ["{}", "no JSON"])
async def test_what_is_wrong_with_a_large_schema_shows_in_the_first_verdict(text: str) -> None:
    reward = JSONSchema({"properties": {f"p{i}": {"type": "thing"} for i in range(100)}})
    with pytest.raises(RewardError, match="this is no JSON schema: 'thing' is not valid"):
        await reward.score("q", [Completion(text=text)])


async def test_a_large_schema_is_as_good_as_a_small_one() -> None:
    reward = JSONSchema({"required": [f"p{i}" for i in range(100)]})
    group = [Completion(text=text) for text in (json.dumps({f"p{i}": i for i in range(100)}), "{}", "no JSON")]
    assert await reward.score("q", group) == [1, 0, 0]


def test_a_schema_that_is_too_long_is_refused() -> None:
    with pytest.raises(RewardSpecError, match="allowed: at most 100000"):
        JSONSchema({"enum": ["a" * 100_000]})


async def test_other_documents_are_not_fetched() -> None:
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        reward = JSONSchema({"$ref": f"http://127.0.0.1:{server.server_port}/schema.json"})
        with pytest.raises(RewardError, match=r"schema\.json"):
            await reward.score("q", [Completion(text="{}")])
        server.shutdown()
    assert asked == []


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": -Infinity}'])
def test_what_only_python_takes_for_json_is_none(text: str) -> None:
    assert find_json(text) is None


async def test_a_pattern_that_never_ends_gives_no_verdict() -> None:
    reward = JSONSchema({"properties": {"a": {"pattern": "^(a+)+$"}}}).session()
    evil, good = ({"a": "a" * 40 + "!"}, {"a": "aaa"})
    group = [Completion(text=json.dumps(value)) for value in (evil, good)]
    assert await reward.score("q", group) == [None, 1]


_pieces = st.sampled_from(
    ["{", "}", "[", "]", '"a"', ":", ",", "1", "```", "```json\n", "\n", "null", "NaN", "\\u0000"]
)


@given(st.lists(_pieces | st.characters(), max_size=25).map("".join))
def test_any_text_is_json_or_not(text: str) -> None:
    found = find_json(text)
    assert found is None or json.loads(found) is not Ellipsis


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
def test_json_is_found_in_prose(value: Any) -> None:
    text = json.dumps({"value": value})
    for wrapped in (text, f"Here: {text}. Good?", f"```json\n{json.dumps({'value': value}, indent=1)}\n```"):
        assert json.loads(find_json(wrapped) or "") == {"value": value}


@pytest.mark.parametrize("piece", ["{", "[", "```json\n", "```\n", "\n ", '"', "{}", "}{", "\t"])
def test_long_texts_take_no_time(piece: str) -> None:
    began = time.process_time()
    for text in (piece * (100_000 // len(piece)), f"```{piece * 30_000}", f"{piece * 30_000}z"):
        find_json(text)
    assert time.process_time() - began < 1
