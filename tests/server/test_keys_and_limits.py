"""Who is let in, and what one caller may have."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from pathlib import Path

import pytest

from backends import Prompt, SamplingParams, State
from backends.scripted import ScriptedBackend
from ets_agent import ConfigError, GuidedAnswer, Policy
from ets_agent.guided import GuidedRequest
from ets_agent.keys import Keys, read_keys
from ets_agent.results import Usage
from ets_agent.server import Limits, bind
from ets_agent.server.errors import ApiError
from ets_agent.server.limits import Admission
from ets_agent.server.shapes import usage
from rewards import RewardSpec
from tests.server.models import Gated
from tests.server.served import CHAT, LOW, QUESTION, SCRIPT, TEXT, Served, post, read_until, wait_until
from tests.virtual_time import pass_time

PATHS = ["/v1/models", "/v1/models/scripted", "/v1/rewards", "/metrics", "/openapi.json", "/nowhere"]


@pytest.fixture(scope="module")
def locked() -> object:
    with Served(ScriptedBackend(SCRIPT), keys=["first", "second"]) as served:
        yield served


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_told_without_a_key(locked: Served, path: str) -> None:
    refused = locked.ask("GET", path)
    assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
    assert refused.headers["www-authenticate"] == "Bearer"
    assert locked.ask("GET", path, key="second").status == (404 if path == "/nowhere" else 200)


@pytest.mark.parametrize(
    "shown",
    [
        "Bearer wrong",
        "Bearer firs",
        "Bearer first2",
        "Bearer ",
        "Bearer",
        "first",
        "Basic first",
        "Bearer first second",
        "Bearer \xff",
    ],
)
def test_a_key_must_be_shown_as_a_whole(locked: Served, shown: str) -> None:
    for body in (CHAT, {"no": "request"}):
        refused = locked.ask("POST", "/v1/chat/completions", body, headers={"Authorization": shown})
        assert (refused.status, refused.error["type"]) == (401, "invalid_request_error")


@pytest.mark.parametrize("shown", ["Bearer first", "bearer second", "BEARER  first"])
def test_each_key_lets_in(locked: Served, shown: str) -> None:
    assert locked.ask("POST", "/v1/chat/completions", CHAT | LOW, headers={"Authorization": shown}).status == 200


def test_whether_the_server_is_up_is_no_secret(locked: Served) -> None:
    assert locked.ask("GET", "/healthz").status == 200


def test_a_body_is_not_read_without_a_key(locked: Served) -> None:
    with locked.connection() as connection:
        connection.sendall(post(b"", length=10**9))
        assert read_until(connection, b"invalid_api_key").startswith(b"HTTP/1.1 401 ")


def known(keys: Keys, key: str) -> bool:
    return keys.of_header(f"Bearer {key}") is not None


def test_keys_come_from_a_file_and_from_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\none # of Ada\n\n  two  \n")
    keys = read_keys(file, {"ETS_API_KEYS": "three, four\nfive"})
    assert all(known(keys, key) for key in ("one", "two", "three", "four", "five"))
    assert not any(known(keys, key) for key in ("", "six", "one # of Ada", "#"))
    assert not read_keys(None, {}).required
    assert not read_keys(None, {"ETS_API_KEYS": " ,"}).required


def test_a_key_may_have_a_number_sign_in_it(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("ab#cdef\n  #comment\nother#\t# of Ada\n#ghost\n")
    keys = read_keys(file, {})
    assert all(known(keys, key) for key in ("ab#cdef", "other#"))
    assert not any(known(keys, key) for key in ("ab", "other", "comment", "#comment", "ghost", "#ghost"))


@pytest.mark.parametrize("content", [b"", b"# nothing\n\n", b"two words\n", b"\xff\n", "schlüssel".encode()])
def test_a_file_without_usable_keys_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(ConfigError):
        read_keys(file, {})
    with pytest.raises(ConfigError, match="cannot read API keys"):
        read_keys(tmp_path, {})


def test_all_keys_are_compared_whichever_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    compared: list[bytes] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(one)
        assert len(one) == len(other) == 32
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    keys = Keys(["first", "second", "third"])
    for shown in ("first", "third", "none", ""):
        compared.clear()
        assert known(keys, shown) == (shown in ("first", "third"))
        assert len(compared) == 3


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_machines_need_keys(host: str) -> None:
    with pytest.raises(ConfigError, match="callers need keys"):
        bind(host, 0, keys=False)
    bind("0.0.0.0", 0, keys=True).close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1.2.3"])
def test_this_machine_needs_none(host: str) -> None:
    bind(host, 0, keys=False).close()


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use"):
            bind("127.0.0.1", port, keys=False)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_a_minute_allows_comes_back_bit_by_bit() -> None:
    clock = Clock()
    admission = Admission(Limits(rate=6), clock=clock)
    for _ in range(2):
        with admission.admit(b"ada", 3):
            pass
    with pytest.raises(ApiError, match="allowed: 6") as caught, admission.admit(b"ada", 1):
        pass
    assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "10")
    with admission.admit(b"ben", 6):
        pass
    clock.now += 10.001
    with admission.admit(b"ada", 1):
        pass
    with pytest.raises(ApiError) as caught, admission.admit(b"ada", 3):
        pass
    assert caught.value.headers["Retry-After"] == "30"
    clock.now += 10_000
    with admission.admit(b"ada", 6), pytest.raises(ApiError), admission.admit(b"ada", 1):
        pass


def _admit(admission: Admission, answers: int) -> None:
    with admission.admit(b"ada", answers):
        pass


def test_places_of_a_key_are_given_back_whatever_happens() -> None:
    admission = Admission(Limits(key_concurrency=3))
    with pytest.raises(KeyError), admission.admit(b"ada", 3):
        raise KeyError
    with admission.admit(b"ada", 2):
        with pytest.raises(ApiError, match="2 answers for this key are in the making; allowed: 3"):
            _admit(admission, 2)
        with admission.admit(b"ada", 1), admission.admit(b"ben", 3):
            pass


def test_what_can_never_be_is_no_matter_of_time() -> None:
    for limits in (Limits(rate=3), Limits(key_concurrency=3), Limits(max_answers=3)):
        with pytest.raises(ApiError, match="4 answers are asked for at once; allowed: at most 3") as caught:
            limits.check(4, param="n")
        assert (caught.value.status, caught.value.param) == (400, "n")


class Compiled(Policy):
    """Counts how often a reward was compiled."""

    times = 0

    def reward(self, request: GuidedRequest) -> RewardSpec:
        type(self).times += 1
        return super().reward(request)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> type[Compiled]:
    monkeypatch.setattr(Compiled, "times", 0)
    return Compiled


@pytest.mark.parametrize("n", [9, 10**6, 10**30])
def test_what_can_never_be_is_refused_before_anything_is_done_for_it(compiled: type[Compiled], n: int) -> None:
    with Served(ScriptedBackend(SCRIPT), policy=compiled(max_tokens=64)) as served:
        refused = served.chat(n=n)
        assert (refused.status, refused.error["param"]) == (400, "n")
        prompts = served.ask("POST", "/v1/completions", TEXT | {"prompt": ["a"] * 9})
        assert (prompts.status, prompts.error["param"]) == (400, "prompt")
        assert served.complete(prompt=["a"] * 3, n=3).status == 400
    assert compiled.times == 0


def test_who_is_not_let_in_has_nothing_compiled(compiled: type[Compiled]) -> None:
    with Served(ScriptedBackend(SCRIPT), policy=compiled(max_tokens=64), limits=Limits(rate=2)) as served:
        assert served.chat(n=2, **LOW).status == 200
        assert compiled.times == 1, "the reward of all choices"
        assert served.chat(**LOW).status == 429
    assert compiled.times == 1


def test_a_refused_request_counts_as_begun() -> None:
    with Served(ScriptedBackend(SCRIPT), limits=Limits(rate=1)) as served:
        assert served.chat(ets={"reward": "regex:pattern=("}).status == 400
        assert served.chat(**LOW).status == 429


@pytest.mark.parametrize("limits", [{"rate": 0}, {"key_concurrency": 0}, {"max_answers": 0}, {"max_body": 0}])
def test_limits_are_numbers_above_zero(limits: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="allowed: a number above 0"):
        Limits(**limits)  # type: ignore[arg-type]


def authorized(key: str) -> bytes:
    """Return a request with a key as it goes over the wire."""
    request = post(json.dumps(CHAT | LOW).encode())
    return request.replace(b"Host", f"Authorization: Bearer {key}\r\nHost".encode())


@pytest.mark.parametrize("stream", [False, True])
def test_a_key_has_so_many_answers_at_a_time(stream: bool) -> None:
    backend = Gated()
    with Served(backend, keys=["ada", "ben"], limits=Limits(key_concurrency=1)) as served, served.connection() as one:
        one.sendall(authorized("ada"))
        wait_until(lambda: backend.waiting == 1)
        refused = served.ask("POST", "/v1/chat/completions", {**CHAT, "stream": stream}, key="ada")
        assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
        assert refused.headers["retry-after"] == "1"
        with served.connection() as other:
            other.sendall(authorized("ben"))
            wait_until(lambda: backend.waiting == 2)
            backend.open()
            read_until(other, b"chat.completion")
        read_until(one, b"chat.completion")
        assert served.ask("POST", "/v1/chat/completions", CHAT | LOW, key="ada").status == 200


def test_a_minute_has_so_many_answers() -> None:
    with Served(ScriptedBackend(SCRIPT), limits=Limits(rate=2)) as served:
        began = time.monotonic()
        assert served.chat(**LOW, n=2).status == 200
        refused = served.chat(**LOW)
        gone = time.monotonic() - began
        assert refused.status == 429
        assert 30 - gone <= int(refused.headers["retry-after"]) <= 30


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_says_when_to_come_back(stream: bool) -> None:
    backend = Gated()
    with Served(backend, max_concurrency=1, max_queue=1) as served, served.asked(CHAT), served.asked(CHAT):
        wait_until(lambda: (backend.waiting, served.reasoning.places.waiting) == (1, 1))
        refused = served.chat(stream=stream)
        assert (refused.status, refused.error["code"]) == (429, "queue_full")
        assert refused.headers["retry-after"] == "1"


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_uses_up_nothing_of_what_a_minute_allows(stream: bool) -> None:
    backend = Gated()
    limits = Limits(rate=2)
    with Served(backend, keys=["ada", "ben"], limits=limits, max_concurrency=1, max_queue=0) as served:
        with served.connection() as one:
            one.sendall(authorized("ada"))
            wait_until(lambda: backend.waiting == 1)
            for _ in range(3):
                refused = served.ask("POST", "/v1/chat/completions", {**CHAT, "stream": stream}, key="ben")
                assert refused.error["code"] == "queue_full"
            backend.open()
            read_until(one, b"chat.completion")
        answers = [served.ask("POST", "/v1/chat/completions", CHAT | LOW, key="ben").status for _ in range(3)]
        assert answers == [200, 200, 429]


@pytest.mark.parametrize("stream", [False, True])
def test_who_has_no_place_in_time_is_told_to_come_back(stream: bool) -> None:
    backend = Gated()
    with Served(backend, max_concurrency=1) as served, served.asked(CHAT):
        wait_until(lambda: backend.waiting == 1)
        refused = served.chat(stream=stream, ets={"timeout": 0.05})
        assert (refused.status, refused.error["code"]) == (503, "no_place")
        assert refused.headers["retry-after"] == "1"
        assert "all places were taken until the time was over" in refused.error["message"]


class Hanging(ScriptedBackend):
    """Never begins with prompts that say so; so many seconds are over then at once."""

    seconds = 10.0

    async def begin(self, prompt: Prompt, *, max_tokens: int, params: SamplingParams) -> State:
        if prompt == "hang":
            pass_time(self.seconds)
            await asyncio.Event().wait()
        return await super().begin(prompt, max_tokens=max_tokens, params=params)


@pytest.mark.parametrize("stream", [False, True])
def test_choices_without_a_place_are_empty_and_take_nothing_from_the_others(stream: bool) -> None:
    # The first one is over at once, the second one keeps the only place, and there is none for the others.
    asked = {
        "prompt": [QUESTION, "hang", "a", "b"],
        "stream": stream,
        "ets": {"effort": "low", "timeout": Hanging.seconds - 1},
    }
    with Served(Hanging(SCRIPT), max_concurrency=1) as served:
        answer = served.complete(**asked)
        assert answer.status == 200
        if stream:
            assert answer.events[-1] == "[DONE]"
            chunks = [json.loads(event)["choices"][0] for event in answer.events[:-1]]
            texts = ["".join(chunk["text"] for chunk in chunks if chunk["index"] == index) for index in range(4)]
            choices = sorted((chunk for chunk in chunks if chunk.get("ets")), key=lambda chunk: chunk["index"])
        else:
            choices = answer.json["choices"]
            texts = [choice["text"] for choice in choices]
        assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
        assert texts[0] in SCRIPT
        assert texts[1:] == ["", "", ""]
        assert [choice["finish_reason"] for choice in choices] == ["stop", "length", "length", "length"]
        assert [choice["ets"]["finish_reason"] for choice in choices[1:]] == ["timeout"] * 3
        for choice in choices[2:]:
            assert choice["ets"]["seed"] is None
            assert choice["ets"]["warnings"] == ["all places were taken until the time was over"]
            assert choice["ets"]["usage"]["candidate_tokens"] == 0


def test_choices_none_of_which_has_a_place_are_refused_together() -> None:
    backend = Gated()
    with Served(backend, max_concurrency=1) as served, served.asked(CHAT):
        wait_until(lambda: backend.waiting == 1)
        for stream in (False, True):
            refused = served.chat(stream=stream, n=3, ets={"timeout": 0.05})
            assert (refused.status, refused.error["code"]) == (503, "no_place")


def test_a_prompt_counts_once_though_its_first_choice_had_no_place() -> None:
    def answer(prompt_tokens: int | None) -> GuidedAnswer:
        return GuidedAnswer(
            answer=None, text="", confidence=None, reward=None, cut_short=False, finish_reason="stop", seed=0,
            usage=Usage(prompt_tokens=prompt_tokens), model="scripted", trace_id="0",
        )  # fmt: skip

    answers = {index: answer(tokens) for index, tokens in enumerate([None, 5, 7, 7, None, None])}
    assert usage(answers, 2).prompt_tokens == 12


def test_more_answers_than_there_are_places_can_never_be() -> None:
    with Served(ScriptedBackend(SCRIPT), max_concurrency=2, max_queue=1) as served:
        refused = served.chat(n=4)
        assert (refused.status, refused.error["param"]) == (400, "n")
        assert refused.error["message"] == "4 answers are asked for at once; allowed: at most 3"
        assert served.chat(n=3, **LOW).status == 200
        fields = served.ask("GET", "/openapi.json").json["components"]["schemas"]["ChatCompletionRequest"]
        assert {"maximum": 3, "minimum": 1, "type": "integer"} in fields["properties"]["n"]["anyOf"]


@pytest.mark.parametrize("stream", [False, True])
def test_choices_are_refused_together(stream: bool) -> None:
    backend = Gated()
    with Served(backend, max_concurrency=1, max_queue=1) as served:
        with served.asked(CHAT):
            wait_until(lambda: backend.waiting == 1)
            assert served.chat(stream=stream, n=2).status == 429
            assert served.reasoning.places.waiting == 0
            backend.open()
        wait_until(lambda: served.reasoning.places.active == 0)
        assert served.chat(stream=stream, n=2, **LOW).status == 200


def test_openais_client_comes_back_by_itself() -> None:
    import openai

    with (
        Served(ScriptedBackend(SCRIPT), limits=Limits(rate=60)) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=3) as client,
    ):
        served.ask("GET", "/healthz")
        for _ in range(60 // 8):
            served.chat(n=8, **LOW)
        for _ in range(6):
            completion = client.chat.completions.create(
                model="scripted", messages=[{"role": "user", "content": "?"}], extra_body=LOW
            )
            assert completion.choices[0].message.content
