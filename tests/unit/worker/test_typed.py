"""Typed parameters: what is taken, what is refused and how it is said."""

from __future__ import annotations

import contextlib
import datetime
import enum
import inspect
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NewType, TypedDict

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_worker.errors import BadInput, HandlerError, InvalidInput
from nvcf_worker.function.headers import MultiMap
from nvcf_worker.function.typed.binding import Plan, Query, plan_of
from nvcf_worker.function.typed.checks import Invalid
from nvcf_worker.function.typed.conversion import form_of
from nvcf_worker.function.typed.plain import plain_form


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


@dataclass
class Point:
    x: float
    y: float = 0.0
    tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.x > 1000:
            raise ValueError("x is too far away")


class Named(TypedDict):
    name: str


class Model(pydantic.BaseModel):
    prompt: str
    steps: Annotated[int, pydantic.Field(ge=1, le=50)] = 20


class Struct(msgspec.Struct):
    prompt: str
    size: Annotated[int, msgspec.Meta(gt=0)] = 1


UserId = NewType("UserId", int)
STAMP = "2026-01-02T03:04:05+00:00"
ID = "3b241101-e2bb-4255-8caf-4136c566a962"


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (str, "a", "a"),
        (int, 3, 3),
        (int, 3.0, 3),
        (float, 3, 3.0),
        (bool, True, True),
        (Any, {"a": [1]}, {"a": [1]}),
        (bytes, "AAE=", b"\x00\x01"),
        (int | None, None, None),
        (int | str, "a", "a"),
        (list[int], [1, 2], [1, 2]),
        (Sequence[float], [1], [1.0]),
        (set[str], ["a", "a"], {"a"}),
        (tuple[int, str], [1, "a"], (1, "a")),
        (tuple[int, ...], [1, 2], (1, 2)),
        (dict[str, int], {"a": 1}, {"a": 1}),
        (Mapping[str, list[bool]], {"a": [True]}, {"a": [True]}),
        (Literal["a", 1], 1, 1),
        (Colour, "red", Colour.RED),
        (UserId, 7, 7),
        (uuid.UUID, ID, uuid.UUID(ID)),
        (datetime.datetime, STAMP, datetime.datetime.fromisoformat(STAMP)),
        (datetime.date, "2026-01-02", datetime.date(2026, 1, 2)),
        (Point, {"x": 1}, Point(1.0)),
        (list[Point], [{"x": 1, "y": 2, "tags": ["t"], "more": 0}], [Point(1.0, 2.0, ["t"])]),
        (Named, {"name": "n"}, {"name": "n"}),
        (Model, {"prompt": "p"}, Model(prompt="p")),
        (dict[str, Model], {"a": {"prompt": "p", "steps": 3}}, {"a": Model(prompt="p", steps=3)}),
        (Struct, {"prompt": "p"}, Struct("p")),
    ],
)
def test_values_that_fit(annotation: Any, value: Any, expected: Any) -> None:
    assert form_of(annotation).convert(value, ()) == expected


@pytest.mark.parametrize(
    ("annotation", "value", "where", "message"),
    [
        (str, 1, "", "expected a text"),
        (int, True, "", "expected a whole number"),
        (int, 1.5, "", "expected a whole number"),
        (float, "1", "", "expected a number"),
        (bool, 1, "", "expected true or false"),
        (bytes, "%", "", "expected base64"),
        (list[int], {"a": 1}, "", "expected an array"),
        (list[int], [1, "2"], "1", "expected a whole number"),
        (tuple[int, int], [1], "", "expected 2 items"),
        (dict[str, int], {"a": "b"}, "a", "expected a whole number"),
        (Literal["a", "b"], "c", "", "expected one of 'a', 'b'"),
        (Literal[1], True, "", "expected one of 1"),
        (Colour, "green", "", "expected one of 'red', 'blue'"),
        (uuid.UUID, "x", "", "expected a UUID"),
        (int | None, "x", "", "expected int | None"),
        (Point | None, {"x": "1"}, "x", "expected a number"),
        (Point, {"y": 1}, "x", "missing"),
        (Point, {"x": 2000}, "", "x is too far away"),
        (Named, {}, "name", "missing"),
        (list[Model], [{"prompt": "p", "steps": 99}], "0.steps", "less than or equal to 50"),
        (Struct, {"prompt": "p", "size": 0}, "size", "Expected `int` >= 1"),
        (Annotated[int, pydantic.Field(gt=3)], 2, "", "greater than 3"),
    ],
)
def test_values_that_do_not_fit(annotation: Any, value: Any, where: str, message: str) -> None:
    with pytest.raises(Invalid) as caught:
        form_of(annotation).convert(value, ())
    (place, said), *_ = caught.value.problems
    assert ".".join(str(part) for part in place) == where
    assert message in said


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(Invalid) as caught:
        form_of(list[Point]).convert([{"x": "a", "y": "b"}, {}], ())
    places = [place for place, _ in caught.value.problems]
    assert places == [(0, "x"), (0, "y"), (1, "x")]


@pytest.mark.parametrize(
    ("annotation", "text", "expected"),
    [(int, "12", 12), (float, "1e3", 1000.0), (bool, "Yes", True), (bool, "0", False), (str, "1", "1"),
     (Colour, "blue", Colour.BLUE), (Level, "1", Level.LOW), (Literal[5], "5", 5), (int | None, "3", 3)],
)  # fmt: skip
def test_texts(annotation: Any, text: str, expected: Any) -> None:
    assert form_of(annotation, text=True).convert(text, ()) == expected


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(json_values)
def test_whatever_comes_is_taken_or_refused_in_order(value: Any) -> None:
    for annotation in (Point, list[Point], dict[str, int | None], Named, Model, Struct, tuple[int, str]):
        form = form_of(annotation)
        with contextlib.suppress(Invalid):
            form.convert(value, ())


def plan(function: Any, **options: Any) -> Plan | None:
    return plan_of(function, inspect.signature(function), **options)


def test_the_request_alone_needs_no_plan() -> None:
    def unannotated(request): ...  # type: ignore[no-untyped-def]
    def anything(event: Any) -> None: ...
    def unknown(request: "Request") -> None: ...  # type: ignore[name-defined]  # noqa: F821, UP037
    def more(request, limit=3): ...  # type: ignore[no-untyped-def]
    def star(*args: Any) -> None: ...

    for function in (unannotated, anything, unknown, more, star):
        assert plan(function) is None


def test_one_model_is_the_whole_body_and_plain_types_are_its_members() -> None:
    def model(body: Model) -> None: ...
    def members(request: Any, prompt: str, steps: int = 3, seed: int | None = None) -> None: ...
    def both(first: Model, second: Point) -> None: ...

    query = MultiMap(())
    whole = plan(model)
    assert whole is not None
    assert whole.values({}, query, b'{"prompt": "p"}') == {"body": Model(prompt="p")}
    named = plan(members)
    assert named is not None
    assert named.takes_request
    assert named.values({}, query, b'{"prompt": "p", "steps": 4, "other": 1}') == {"prompt": "p", "steps": 4}
    pair = plan(both)
    assert pair is not None
    body = b'{"first": {"prompt": "p"}, "second": {"x": 1}}'
    assert pair.values({}, query, body) == {"first": Model(prompt="p"), "second": Point(1.0)}
    with pytest.raises(BadInput):
        named.values({}, query, b"{")
    for wrong in (b"[]", b"3"):
        with pytest.raises(InvalidInput, match="expected an object"):
            named.values({}, query, wrong)
    with pytest.raises(InvalidInput) as caught:
        named.values({}, query, b'{"steps": "x"}')
    assert caught.value.errors == [("prompt", "missing"), ("steps", "expected a whole number")]
    assert str(caught.value) == "prompt: missing; steps: expected a whole number"


def test_path_and_query() -> None:
    def item(item: int, body: Point, top: Annotated[int, Query("top-k")] = 5) -> None: ...
    def listing(request: Any, tags: list[str], deep: bool = False) -> None: ...

    found = plan(item, path_names=("item",))
    assert found is not None
    values = found.values({"item": "7"}, MultiMap([("top-k", "3")]), b'{"x": 1}')
    assert values == {"item": 7, "body": Point(1.0), "top": 3}
    many = plan(listing, from_query=True)
    assert many is not None
    assert not many.needs_body
    query = MultiMap([("tags", "a"), ("tags", "b"), ("deep", "true")])
    assert many.values({}, query, b"ignored") == {"tags": ["a", "b"], "deep": True}


def test_handlers_that_cannot_be_called() -> None:
    def unannotated(request, what): ...  # type: ignore[no-untyped-def]
    def nothing() -> None: ...
    def callback(request: Any, call: type) -> None: ...
    def positional(request: Any, a: int, /) -> None: ...

    for function, message in (
        (unannotated, "'what' needs an annotation"),
        (nothing, "takes none"),
        (callback, "parameter 'call'"),
        (positional, "positional only"),
    ):
        with pytest.raises(HandlerError, match=message):
            plan(function)


def test_results_in_a_plain_form() -> None:
    assert plain_form(Model(prompt="p")) == {"prompt": "p", "steps": 20}
    assert plain_form(Struct("p")) == {"prompt": "p", "size": 1}
    assert plain_form(Point(1.0)) == {"x": 1.0, "y": 0.0, "tags": []}
    assert plain_form(Colour.RED) == "red"
    assert plain_form(uuid.UUID(ID)) == ID
    assert plain_form(datetime.date(2026, 1, 2)) == "2026-01-02"
    assert plain_form(b"\x00") == "AA=="
    numpy = pytest.importorskip("numpy")
    assert plain_form(numpy.float32(0.5)) == 0.5
    assert plain_form(numpy.eye(2)) == [[1.0, 0.0], [0.0, 1.0]]
    with pytest.raises(TypeError, match="object is not JSON serializable"):
        plain_form(object())
