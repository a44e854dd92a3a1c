"""What all stored records have in common."""

from __future__ import annotations

from typing import Any, Self

from nvcf_proto.records import Fields, dump_object, load_object


class Record:
    """Something stored or sent as a JSON object."""

    def to_json(self) -> bytes:
        """The record as JSON, camelCase, absent fields left out."""
        return dump_object(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The record's JSON members."""
        raise NotImplementedError

    @classmethod
    def from_json(cls, body: bytes) -> Self:
        """Read a stored record. Raises InvalidRecord."""
        return cls.from_fields(Fields(load_object(body, cls.__name__)))

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Build the record from its JSON members. Raises InvalidRecord."""
        raise NotImplementedError
