"""Write the table of all metrics into docs/operate/metrics.md; `--check` only says whether it is fresh."""

from __future__ import annotations

import sys
from pathlib import Path

from nvcf_otel import compatible, instruments
from nvcf_otel.instrument import Instrument

DOCUMENT = Path(__file__).parent.parent / "docs" / "operate" / "metrics.md"
BEGIN = "<!-- metrics: written by scripts/generate_metrics.py -->"
END = "<!-- end of metrics -->"


def table() -> str:
    """All figures but the compatible ones, and the names of those."""
    lines = ["| OpenTelemetry | Prometheus | unit | attributes | what it says |", "|---|---|---|---|---|"]
    peer = set(compatible.ALL)
    lines += [_row(each) for each in instruments.ALL if each not in peer]
    short = [each for each in compatible.ALL if each.name.startswith(f"{compatible.PREFIXES[0]}_")]
    lines += ["", "Compatible, each with the prefix `nvcf_worker_service_` and with `nvcf_`:", ""]
    lines += ["| name | attributes | what it says |", "|---|---|---|"]
    for each in short:
        name = each.name.removeprefix(f"{compatible.PREFIXES[0]}_")
        own = ", ".join(f"`{key}`" for key in each.attributes if key not in compatible.IDS)
        lines.append(f"| `{name}` | {own} | {each.description} |")
    return "\n".join(lines)


def _row(each: Instrument) -> str:
    attributes = ", ".join(f"`{key}`" for key in each.attributes)
    return f"| `{each.name}` | `{each.prometheus_name}` | {each.unit} | {attributes} | {each.description} |"


def document(text: str) -> str:
    """The document with a fresh table. Raises ValueError when it has no place for one."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{DOCUMENT.name} has no lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> int:
    """Entry point."""
    text = DOCUMENT.read_text()
    fresh = document(text)
    if "--check" in sys.argv[1:]:
        if fresh != text:
            print("docs/operate/metrics.md: the table of metrics is stale; run scripts/generate_metrics.py")
        return int(fresh != text)
    DOCUMENT.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())
