"""The definitions of the custom resources."""

from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from msgspec import Meta

from nvcf_agent.kubernetes.crds.definitions import definitions
from nvcf_agent.kubernetes.crds.schema import PRESERVE, UNCHANGED, kept, structural
from nvcf_agent.state.request_status import RequestStatus
from nvcf_proto.models import Record


class Inner(Record, frozen=True):
    """A part."""

    size: Annotated[int, Meta(ge=1, le=9)] = 2


class Outer(Record, frozen=True):
    """A record with something of each kind."""

    name: Annotated[str, Meta(pattern=r"^a+\Z", max_length=9), kept(UNCHANGED)]
    status: RequestStatus = RequestStatus.NEW
    parts: tuple[Inner, ...] = ()
    labels: dict[str, str] | None = None
    share: float = 0.5


def test_a_record_becomes_a_schema() -> None:
    schema = structural(Outer, defaults=True)
    assert schema["required"] == ["name"]
    assert schema[PRESERVE] is True
    properties = schema["properties"]
    assert properties["name"] == {
        "type": "string",
        "pattern": "^a+$",
        "maxLength": 9,
        "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "cannot be changed"}],
    }
    assert properties["status"]["enum"] == [each.value for each in RequestStatus]
    size = properties["parts"]["items"]["properties"]["size"]
    assert size == {"type": "integer", "format": "int64", "minimum": 1, "maximum": 9, "default": 2}
    assert properties["labels"] == {"type": "object", "additionalProperties": {"type": "string"}}
    assert "default" not in structural(Outer)["properties"]["share"]


def test_what_has_no_schema_is_named() -> None:
    with pytest.raises(TypeError, match="no schema for"):
        structural(bytes)


def _schemas(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield schema
    for each in schema.get("properties", {}).values():
        yield from _schemas(each)
    for name in ("items", "additionalProperties"):
        if name in schema:
            yield from _schemas(schema[name])


def test_definitions_are_structural_and_say_in_short_how_it_is() -> None:
    columns = {}
    for each in definitions():
        (version,) = each["spec"]["versions"]
        assert version["subresources"] == {"status": {}}
        for schema in _schemas(version["schema"]["openAPIV3Schema"]):
            assert "type" in schema or schema == {PRESERVE: True}
        columns[each["metadata"]["name"]] = [each["name"] for each in version["additionalPrinterColumns"]]
    assert columns["icmsrequests.nvca.nvcf.nvidia.io"][:2] == ["Phase", "Status"]
    assert columns["miniservices.nvca.nvcf.nvidia.io"][0] == "Phase"
    assert columns["nvcfbackends.nvcf.nvidia.io"][:3] == ["Age", "Version", "Health"]
