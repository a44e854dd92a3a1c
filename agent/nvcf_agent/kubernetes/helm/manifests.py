"""What helm prints, as objects. Pure, and safe for any text.

PyYAML's fast loader is recursive in C: a text that is nested deeply enough would end the whole agent. So the
nesting is counted first, without recursion.
"""

from typing import Any

import yaml

from nvcf_agent.kubernetes.helm.errors import ChartError
from nvcf_proto.charts.objects import MAX_DEPTH

_MOST_DOCUMENTS = 1000
_MOST_MERGED = 1000
# YAML as Kubernetes reads it has no dates, and no numbers of base 60: `22:22` is a text.
_DATE = "tag:yaml.org,2002:timestamp"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_LIST = ("List", "v1")


class _Loader(yaml.CSafeLoader):
    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        # Merged mappings of merged mappings grow exponentially.
        if len(node.value) > _MOST_MERGED:
            raise ChartError(f"the chart renders a mapping of more than {_MOST_MERGED} entries with `<<`")
        super().flatten_mapping(node)


def _without_surprises() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items():
        kept = [(tag, pattern) for tag, pattern in resolvers if tag != _DATE]
        found[first] = [
            (tag, _Decimal(pattern)) if tag in _NUMBERS else (tag, pattern) for tag, pattern in kept
        ]
    return found


class _Decimal:
    """A pattern that matches no text with a colon."""

    def __init__(self, pattern: Any) -> None:
        self._pattern = pattern

    def match(self, text: str) -> Any:
        return None if ":" in text else self._pattern.match(text)


_Loader.yaml_implicit_resolvers = _without_surprises()


def parse_manifests(text: str) -> list[Any]:
    """Return the objects of YAML documents, those of lists one by one. Raises `ChartError`."""
    try:
        _check_depth(text)
        documents = list(yaml.load_all(text, Loader=_Loader))
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ChartError(f"the chart renders text that is not YAML: {error}") from error
    found: list[Any] = []
    for each in documents:
        if isinstance(each, dict) and (each.get("kind"), each.get("apiVersion")) == _LIST:
            listed = each.get("items")
            found += listed if isinstance(listed, list) else ()
        elif each is not None:
            found.append(each)
    return found


def _check_depth(text: str) -> None:
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.DocumentStartEvent):
            documents += 1
        if depth > MAX_DEPTH or documents > _MOST_DOCUMENTS:
            raise ChartError("the chart renders too many or too deeply nested documents: make it smaller")
