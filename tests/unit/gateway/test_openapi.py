"""The description of the HTTP API says what the door serves, no more and no less."""

from __future__ import annotations

import inspect
import json
from typing import Any

from nvcf_gateway.openapi import document
from nvcf_gateway.routes import access_routes
from nvcf_gateway.server import HttpDoor

METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}


class Anything:
    """Stands for a part whose handlers are named in the table and never called here."""

    def __getattr__(self, name: str) -> Any:
        return Anything()


def test_paths_and_methods_are_those_of_the_table() -> None:
    parts: dict[str, Any] = {name: Anything() for name in inspect.signature(HttpDoor).parameters}
    nothing: Any = Anything()
    door = HttpDoor(**{**parts, "more": access_routes(*[nothing] * 6)})
    described = {
        (method.upper(), path)
        for path, operations in document()["paths"].items()
        for method in operations
        if method in METHODS
    }
    assert described == set(door.routes)


def test_every_reference_leads_somewhere_and_nothing_is_left_over() -> None:
    text = json.dumps(document())
    known = set(document()["components"]["schemas"])
    used = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert used == known


def test_operations_have_names_of_their_own_and_say_who_may_call() -> None:
    operations = [
        operation
        for path in document()["paths"].values()
        for method, operation in path.items()
        if method in METHODS
    ]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    for operation in operations:
        assert operation["summary"].endswith(".")
        if operation.get("security") != []:
            assert "401" in operation["responses"], operation["operationId"]
