"""Routes: which handler gets a request, and which parameters."""

from __future__ import annotations

from typing import Any

import pytest

from nvcf_worker import App
from nvcf_worker.errors import HandlerError, MethodNotAllowed, NotFound
from nvcf_worker.function.handlers import Handler, Kind, classify


def app_of(*routes: tuple[str, tuple[str, ...]]) -> Handler:
    app = App()
    for path, methods in routes:

        @app.route(path, methods=methods)
        def handler(request: Any, path: str = path) -> Any: ...

    return classify(app)


@pytest.mark.parametrize(
    ("method", "path", "parameters"),
    [
        ("POST", "/v1/embed", {}),
        ("GET", "/v1/a%2Fb", {"name": "a/b"}),
        ("HEAD", "/v1/x", {"name": "x"}),
        ("GET", "/v1/x/y/z", {"name": "x", "rest": "y/z"}),
        ("POST", "/v1/%65mbed", {}),
        ("GET", "/a.b", {}),
    ],
)
def test_what_matches(method: str, path: str, parameters: dict[str, str]) -> None:
    handler = app_of(
        ("/v1/{name}", ("GET",)), ("/v1/embed", ("POST",)), ("/v1/{name}/{rest:path}", ("GET",)),
        ("/a.b", ("get",)),
    )  # fmt: skip
    assert handler.select(method, path)[1] == parameters


def test_what_does_not_match() -> None:
    handler = app_of(("/v1/{name}", ("GET", "PUT")), ("/v1/embed", ("POST",)), ("/a.b", ("GET",)))
    for path in ("/", "/v1", "/v1/", "/v1/x/", "/V1/x", "/axb"):
        with pytest.raises(NotFound, match="no route"):
            handler.select("GET", path)
    with pytest.raises(MethodNotAllowed) as caught:
        handler.select("DELETE", "/v1/embed")
    assert caught.value.headers == [("allow", "GET, POST, PUT")]
    # A path that is served exactly for one method is served by a pattern for the others.
    assert handler.select("PUT", "/v1/embed")[1] == {"name": "embed"}


@pytest.mark.parametrize("path", ["v1", "/{", "/{a}{", "/{a}/{a}", "/{1a}", "/{a:int}"])
def test_malformed_paths(path: str) -> None:
    with pytest.raises(HandlerError, match="route"):
        App().route(path)


def test_an_app_names_the_route_that_is_wrong() -> None:
    app = App()
    with pytest.raises(HandlerError, match="no routes"):
        classify(app)
    app.route("/fine")(lambda request: None)
    app.route("/wrong")(lambda a, b: None)
    with pytest.raises(HandlerError, match=r"route /wrong: .*'b' needs an annotation"):
        classify(app)
    with pytest.raises(HandlerError, match="there twice for POST"):
        app.route("/fine")(lambda request: None)
    with pytest.raises(HandlerError, match="methods"):
        app.route("/x", methods=["not a method"])


def test_each_route_runs_in_its_own_way() -> None:
    app = App()

    @app.route("/plain", media_type="text/x")
    def plain(request: Any) -> Any: ...

    @app.route("/coroutine")
    async def coroutine(request: Any) -> Any: ...

    handler = classify(app, "text/all")
    found = {path: handler.select("POST", path)[0] for path in ("/plain", "/coroutine")}
    assert (found["/plain"].kind, found["/plain"].media_type) == (Kind.SYNC, "text/x")
    assert (found["/coroutine"].kind, found["/coroutine"].media_type) == (Kind.ASYNC, "text/all")
