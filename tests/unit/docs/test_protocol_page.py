"""The page about the wire protocol names what the contract package has."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor, FileDescriptor
from scripts.check_links import PROTOCOL, ROOT

from nvcf_proto import environment, headers
from nvcf_proto.pb import nvcf_pb2, ratelimiter_pb2

PAGE = (ROOT / PROTOCOL).read_text()
FILES: tuple[FileDescriptor, ...] = (nvcf_pb2.DESCRIPTOR, ratelimiter_pb2.DESCRIPTOR)


def messages(message: Descriptor) -> Iterator[Descriptor]:
    """Yield a message and those that are declared inside it."""
    yield message
    for inner in message.nested_types:
        if not inner.GetOptions().map_entry:
            yield from messages(inner)


@pytest.mark.parametrize(
    "message", [each.name for file in FILES for each in file.message_types_by_name.values()]
)
def test_each_field_is_there_with_its_number(message: str) -> None:
    file = next(each for each in FILES if message in each.message_types_by_name)
    rows = "\n".join(re.findall(rf"^\| `{message}\b.*$", PAGE, re.MULTILINE))
    if not rows:
        # A message with a table of its own.
        rows = PAGE[PAGE.index(f"\n`{message}` is") :]
    for each in messages(file.message_types_by_name[message]):
        for field in each.fields:
            found = re.search(rf"\b{field.number} (?:\| )?`{field.name}`", rows)
            assert found, f"{each.full_name}.{field.name} = {field.number}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.name))
def test_each_call_and_each_value_is_there(file: FileDescriptor) -> None:
    for service in file.services_by_name.values():
        assert {method.name for method in service.methods if method.name not in PAGE} == set()
    for enum in file.enum_types_by_name.values():
        assert {value.name for value in enum.values if f"{value.number} `{value.name}`" not in PAGE} == set()


@pytest.mark.parametrize("module", [environment, headers], ids=["environment variables", "headers"])
def test_each_name_is_there(module: object) -> None:
    names = {value for name, value in vars(module).items() if name.isupper() and isinstance(value, str)}
    assert {name for name in names if name not in PAGE} == set()
