"""Ids of instances as people see and type them. Pure.

An agent's id of an instance is long and begins alike for all: `0-sr-3f2a9c1d-…`. What tells them apart is
the UUID in it.
"""

import re
from collections import Counter
from collections.abc import Iterable

_PREFIX = re.compile(r"(?:(?P<index>[0-9]+)-)?sr-(?=[0-9a-f])")
_SHORT = 8


def telling_part(instance_id: str) -> str:
    """Return the id without what is alike in all: its `0-sr-`; of a further instance, `N-` stays."""
    return "".join(_parts(instance_id))


def short_id(instance_id: str) -> str:
    """Return the first characters of what tells the instance from others."""
    index, rest = _parts(instance_id)
    return index + rest[:_SHORT]


def _parts(instance_id: str) -> tuple[str, str]:
    match = _PREFIX.match(instance_id)
    if match is None:
        return "", instance_id
    index = match["index"]
    return "" if index in (None, "0") else f"{index}-", instance_id[match.end() :]


def short_ids(instance_ids: Iterable[str]) -> dict[str, str]:
    """Return a short form for each id, longer where several would look alike."""
    known = list(dict.fromkeys(instance_ids))
    shown = {each: short_id(each) for each in known}
    count = Counter(shown.values())
    return {each: text if count[text] == 1 else telling_part(each) for each, text in shown.items()}


def is_named(instance_id: str, text: str) -> bool:
    """Return whether a user who types `text` means this instance: the beginning of its id, long or short."""
    return instance_id.startswith(text) or telling_part(instance_id).startswith(text)
