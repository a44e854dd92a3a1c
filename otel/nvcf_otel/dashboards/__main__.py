"""Write the dashboards and the alerts' runbook links, or check that the files are current."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from nvcf_otel.dashboards import function, platform, scaling
from nvcf_otel.dashboards.alerts import RUNBOOK, with_runbook

FOLDER = Path(__file__).resolve().parents[2] / "dashboards"
ALERTS = FOLDER.parent / "prometheus" / "alerts.yml"


def documents() -> dict[str, str]:
    """File names and their texts."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder

    boards = {
        "function.json": function.build(),
        "platform.json": platform.build(),
        "scaling-and-cost.json": scaling.build(),
    }
    return {
        name: json.dumps(board.build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"
        for name, board in boards.items()
    }


def main() -> int:
    """Return exit code 1 if `--check` finds a difference."""
    parser = argparse.ArgumentParser(prog="python -m nvcf_otel.dashboards", description=__doc__)
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        help="folder for the dashboards and a copy of alerts.yml (default: the source tree)",
    )
    parser.add_argument("--runbook", default=RUNBOOK, metavar="URL", help="page that runbook_url points at")
    parser.add_argument("--check", action="store_true", help="change nothing, print which files differ")
    arguments = parser.parse_args()
    folder = arguments.folder or FOLDER
    files = {folder / name: text for name, text in documents().items()}
    alerts = ALERTS if arguments.folder is None else folder / ALERTS.name
    files[alerts] = with_runbook(ALERTS.read_text(), arguments.runbook)
    differing = [file for file, text in files.items() if _text(file) != text]
    if not arguments.check:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            file.write_text(text)
        return 0
    for file in differing:
        sys.stderr.write(f"{file} differs: run python -m nvcf_otel.dashboards\n")
    return 1 if differing else 0


def _text(file: Path) -> str | None:
    return file.read_text() if file.exists() else None


if __name__ == "__main__":
    sys.exit(main())
