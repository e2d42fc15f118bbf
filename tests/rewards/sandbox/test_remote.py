"""What the tester makes of what a program says, and what it lets a program do."""

from __future__ import annotations

from typing import Any

import pytest

from rewards.sandbox.inside.codec import CodecError, Exchange
from rewards.sandbox.inside.remote import Program, Remote


@pytest.fixture
def program() -> Program:
    return Program(-1, -1)


@pytest.mark.parametrize("name", ["eval", "exec", "__import__", "type", "object", "getattr", "open", "super", []])
def test_a_program_cannot_hand_out_what_would_act_in_the_tester(program: Program, name: Any) -> None:
    with pytest.raises(CodecError):
        Exchange(program.export, program.resolve).decode(["b", name])


def test_a_program_can_hand_out_types_of_data_and_exceptions(program: Program) -> None:
    exchange = Exchange(program.export, program.resolve)
    assert exchange.decode(["t", ["b", "int"], ["b", "list"], ["b", "KeyError"]]) == (int, list, KeyError)


def test_a_program_can_call_the_functions_that_it_was_lent_and_nothing_else(program: Program) -> None:
    assert program.export(lambda x: x + 1) == ["k", 0, "function"]
    assert program.export(iter([7])) == ["k", 1, "iterator"]
    assert program.export(NotImplementedError("x")) == ["k", 2, "object"]
    assert program.perform("call", [0, 1], {}) == 2
    assert program.perform("next", [1], {}) == 7
    for operation, args in (
        ("call", [1]),
        ("call", [2]),
        ("call", [3]),
        ("call", [-1]),
        ("next", [0]),
        ("getattr", [0]),
    ):
        with pytest.raises(TypeError):
            program.perform(operation, [*args, "__globals__"], {})
    with pytest.raises((TypeError, ValueError)):
        program.perform("call", [], {})


@pytest.mark.parametrize(
    "message",
    [
        ["h", 0],
        ["h", "0", "A", [], False],
        ["h", 0, "A\0", ["__call__"], False],
        ["h", 0, "A", 5, False],
        ["h", 0, "A", [], "yes"],
        ["k", 0],
        ["k", -1],
        ["x", 0, "E", "m", "NoSuchError"],
        ["x", "0", "E", "m", "Exception"],
        ["q"],
    ],
)
def test_what_describes_no_object_is_refused(program: Program, message: Any) -> None:
    with pytest.raises(CodecError):
        Exchange(program.export, program.resolve).decode(message)


def test_an_object_has_the_special_methods_of_its_class_and_no_others(program: Program) -> None:
    message = ["h", 0, "A", ["__len__", "__class__", "__eq__", "__getattribute__", "__del__", "__reduce__"], False]
    remote = Exchange(program.export, program.resolve).decode(message)
    assert isinstance(remote, Remote)
    assert hasattr(type(remote), "__len__")
    assert not callable(remote)
    assert type(remote).__eq__ is Remote.__eq__
    assert not hasattr(type(remote), "__del__")
    assert (remote == 5, remote != 5, remote in [5]) == (False, True, False)
    assert Exchange(program.export, program.resolve).decode(message) is remote
