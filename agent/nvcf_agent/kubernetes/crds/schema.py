"""Structural OpenAPI schemas, as custom resources need them, from records. Pure."""

from typing import Annotated, Any

from msgspec import Meta, inspect

Schema = dict[str, Any]

PRESERVE = "x-kubernetes-preserve-unknown-fields"
RULES = "x-kubernetes-validations"

Anything = Annotated[Any, Meta(extra_json_schema={PRESERVE: True})]
"""A value of any form, which the API server keeps as it is."""
Members = Annotated[dict[str, Any], Meta(extra_json_schema={PRESERVE: True})]
"""An object with members of any form."""
Time = Annotated[str, Meta(max_length=64, extra_json_schema={"format": "date-time"})]


def rule(expression: str, message: str) -> Schema:
    """Return a rule of CEL that a value keeps, with what is said to who breaks it."""
    return {"rule": expression, "message": message}


UNCHANGED = rule("self == oldSelf", "cannot be changed")


def kept(*rules: Schema) -> Meta:
    """Return the constraint that a value keeps these rules."""
    return Meta(extra_json_schema={RULES: list(rules)})


def structural(cls: type, *, defaults: bool = False) -> Schema:
    """Return the schema of a record. With `defaults` the API server fills in the record's simple ones.

    Members that the record does not know are kept: NVIDIA's agent, or another version of this one, may have
    written them.
    """
    return _schema(inspect.type_info(cls), defaults)


def _schema(kind: inspect.Type, defaults: bool) -> Schema:
    match kind:
        case inspect.Metadata(type=inner, extra_json_schema=extra):
            return _schema(inner, defaults) | (extra or {})
        case inspect.UnionType(types=types):
            # None is never written, it only says that a member may be missing.
            (inner,) = (each for each in types if not isinstance(each, inspect.NoneType))
            return _schema(inner, defaults)
        case inspect.StructType(fields=fields):
            return _object(fields, defaults)
        case inspect.DictType(value_type=inspect.AnyType()):
            return {"type": "object"}
        case inspect.DictType(value_type=value):
            return {"type": "object", "additionalProperties": _schema(value, defaults)}
        case inspect.VarTupleType(item_type=item, max_length=most):
            return _given(type="array", items=_schema(item, defaults), maxItems=most)
        case _:
            return _simple(kind)


def _simple(kind: inspect.Type) -> Schema:
    match kind:
        case inspect.EnumType(cls=cls):
            return {"type": "string", "enum": [each.value for each in cls]}
        case inspect.LiteralType(values=values):
            return {"type": "string", "enum": list(values)}
        case inspect.StrType(pattern=pattern, max_length=most):
            # Go writes the end of a text in another way.
            return _given(type="string", pattern=pattern and pattern.replace(r"\Z", "$"), maxLength=most)
        case inspect.IntType(ge=least, le=most):
            return _given(type="integer", format="int64", minimum=least, maximum=most)
        case inspect.FloatType(ge=least, le=most):
            return _given(type="number", minimum=least, maximum=most)
        case inspect.BoolType():
            return {"type": "boolean"}
        case inspect.AnyType():
            return {}
    raise TypeError(f"no schema for {kind}")


def _object(fields: tuple[inspect.Field, ...], defaults: bool) -> Schema:
    properties = {}
    for field in fields:
        schema = _schema(field.type, defaults)
        if defaults and isinstance(field.default, str | int | float) and field.default:
            schema["default"] = field.default
        properties[field.encode_name] = schema
    required = [field.encode_name for field in fields if field.required]
    return _given(type="object", required=required or None, properties=properties) | {PRESERVE: True}


def _given(**members: Any) -> Schema:
    return {name: value for name, value in members.items() if value is not None}
