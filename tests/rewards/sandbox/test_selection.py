from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rewards.sandbox import SandboxError, SandboxUnavailableError, select, selection
from rewards.sandbox.unsafe import Unsafe


@pytest.fixture
def unprobed() -> Iterator[None]:
    selection._probed.cache_clear()
    yield
    selection._probed.cache_clear()


@pytest.mark.usefixtures("unprobed")
@pytest.mark.parametrize("name", ["auto", "bubblewrap", "docker"])
def test_where_nothing_works_the_refusal_says_what_to_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SandboxUnavailableError) as refusal:
        select(name)  # type: ignore[arg-type]
    message = str(refusal.value)
    assert "is not installed" in message
    for hint in ("apt-get install bubblewrap", "AppArmor", "seccomp=unconfined", "docker pull", 'sandbox="unsafe"'):
        assert hint in message


@pytest.mark.usefixtures("unprobed")
def test_the_bare_process_is_never_chosen_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SandboxUnavailableError):
        select("auto")
    assert isinstance(select("unsafe"), Unsafe)


@pytest.mark.usefixtures("unprobed")
def test_a_sandbox_is_probed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    probes: list[object] = []
    monkeypatch.setattr(selection, "probe", lambda sandbox: probes.append(sandbox) or "")
    assert select("unsafe") is select("unsafe")
    assert len(probes) == 1


@pytest.mark.usefixtures("unprobed")
def test_a_sandbox_that_starts_but_does_not_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Open(Unsafe):
        isolated = True

    monkeypatch.setitem(selection._KINDS, "bubblewrap", Open)
    with pytest.raises(SandboxUnavailableError, match="the network can be reached, files of the user can be read"):
        select("bubblewrap")


@pytest.mark.usefixtures("unprobed")
def test_a_sandbox_that_fails_is_refused_with_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bwrap"
    path.write_text("#!/bin/sh\necho 'setting up uid map: Permission denied' >&2\nexit 1\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailableError, match="setting up uid map: Permission denied"):
        select("bubblewrap")


def test_there_is_no_sandbox_of_another_name() -> None:
    with pytest.raises(ValueError, match="auto, bubblewrap, docker, unsafe"):
        select("chroot")  # type: ignore[arg-type]


def test_errors_are_errors_of_rewards() -> None:
    from rewards import RewardError

    assert issubclass(SandboxUnavailableError, SandboxError)
    assert issubclass(SandboxError, RewardError)
