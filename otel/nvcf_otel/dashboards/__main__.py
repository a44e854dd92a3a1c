"""Write the dashboards into a folder, or check that it holds them."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from nvcf_otel.dashboards import function, platform, scaling

FOLDER = Path(__file__).resolve().parents[2] / "dashboards"


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
    """Exit code 1 if `--check` finds a difference."""
    parser = argparse.ArgumentParser(prog="python -m nvcf_otel.dashboards", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--check", action="store_true", help="change nothing, tell what differs")
    arguments = parser.parse_args()
    differing = [name for name, text in documents().items() if _text(arguments.folder / name) != text]
    if not arguments.check:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        for name, text in documents().items():
            (arguments.folder / name).write_text(text)
        return 0
    for name in differing:
        sys.stderr.write(f"{arguments.folder / name} differs: run python -m nvcf_otel.dashboards\n")
    return 1 if differing else 0


def _text(file: Path) -> str | None:
    return file.read_text() if file.exists() else None


if __name__ == "__main__":
    sys.exit(main())
