"""C10: types that contain themselves, as parameters."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
import typing
from typing import Any, TypedDict

import pytest

from nvcf_worker.errors import HandlerError, InvalidInput
from nvcf_worker.function.typed.binding import Plan, plan_of


@dataclasses.dataclass
class Node:
    name: str
    kids: list[Node] = dataclasses.field(default_factory=list)
    parent: Node | None = None
    named: dict[str, Node] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Left:
    right: Right | None = None
    number: int = 0


@dataclasses.dataclass
class Right:
    left: tuple[Left, ...] = ()


class Tree(TypedDict):
    value: int
    children: list[Tree]


def plan(annotation: Any) -> Plan:
    def handler(body: Any) -> None: ...

    handler.__annotations__ = {"body": annotation}
    found = plan_of(handler, inspect.signature(handler))
    assert found is not None
    return found


def read(annotation: Any, value: Any) -> Any:
    return plan(annotation).values({}, {}, json.dumps(value).encode())["body"]


def test_c10_a_dataclass_that_contains_itself() -> None:
    leaf = {"name": "leaf"}
    found = read(Node, {"name": "root", "kids": [leaf], "parent": None, "named": {"a": leaf}})
    assert found == Node("root", [Node("leaf")], None, {"a": Node("leaf")})
    with pytest.raises(InvalidInput) as raised:
        read(Node, {"name": "root", "kids": [{"name": "a", "kids": [{"name": 1}]}]})
    assert raised.value.errors == [("kids.0.kids.0.name", "expected a text")]


def test_c10_types_that_contain_each_other() -> None:
    found = read(Left, {"right": {"left": [{"number": 1}, {"right": {"left": []}}]}})
    assert found == Left(Right((Left(None, 1), Left(Right()))))


def test_c10_a_typed_dictionary() -> None:
    value = {"value": 1, "children": [{"value": 2, "children": []}]}
    assert read(Tree, value) == value
    with pytest.raises(InvalidInput, match=r"children\.0\.value"):
        read(Tree, {"value": 1, "children": [{"children": []}]})


@pytest.mark.skipif(sys.version_info < (3, 12), reason="type statements")
def test_c10_a_type_alias() -> None:
    scope: dict[str, Any] = {}
    exec("type Json = int | list[Json] | dict[str, Json]", scope)  # noqa: S102
    found = plan(scope["Json"] if sys.version_info >= (3, 12) else int)
    assert found.values({}, {}, b'{"body":{"a":[1,[2]]}}') == {"body": {"a": [1, [2]]}}


def test_c10_values_deeper_than_the_stack_are_refused() -> None:
    depth = sys.getrecursionlimit() // 3
    text = '{"value":1,"children":[' * depth + "]}" * depth
    with pytest.raises(InvalidInput, match="nested too deeply"):
        plan(Tree).values({}, {}, text.encode())


def test_c10_annotations_that_cannot_be_read_are_named() -> None:
    made = dataclasses.make_dataclass("Made", [("kids", typing.cast(Any, "list[Nowhere]"))])
    with pytest.raises(HandlerError, match="annotations of Made cannot be read: name 'Nowhere'"):
        plan(made)
