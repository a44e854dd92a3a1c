"""Links from alerts to the runbook."""

from __future__ import annotations

import re

RUNBOOK = "docs/operate/runbook.md"

_ALERT = re.compile(r"- alert: (?P<name>\w+)\n(?:(?! *- ).*\n)*?(?P<indent> +)annotations:\n")
_LINK = re.compile(r" +runbook_url: .*\n")


def with_runbook(rules: str, runbook: str = RUNBOOK) -> str:
    """Return the text of a rule file in which every alert's `runbook_url` points at its section of a page.

    `runbook` is the URL of the page, absolute or relative. A section has its alert in lower case as anchor.
    """

    def linked(match: re.Match[str]) -> str:
        return f'{match[0]}{match["indent"]}  runbook_url: "{runbook}#{match["name"].lower()}"\n'

    return _ALERT.sub(linked, _LINK.sub("", rules))
