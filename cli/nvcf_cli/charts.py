"""What commands with `--helm-chart` read: the chart's values, and a name for its function or task."""

import json
import re
from pathlib import Path

import yaml

from nvcf_cli.api import Json
from nvcf_cli.errors import UsageError


def read_values(path: Path | None) -> Json | None:
    """Return the chart's values in a file of YAML or JSON; None without one. Raises `UsageError`."""
    if path is None:
        return None
    try:
        found = yaml.safe_load(path.expanduser().read_text(encoding="utf-8"))
        # What YAML has beyond JSON, such as dates, cannot be sent.
        values = json.loads(json.dumps({} if found is None else found, allow_nan=False))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        text = " ".join(str(error).split())
        raise UsageError(
            f"--values {path}: not YAML with JSON's values (dates need quotes): {text}"
        ) from error
    if not isinstance(values, dict):
        raise UsageError(f"--values {path}: names and values expected, as in a chart's values.yaml")
    return values


def name_from_chart(chart: str) -> str:
    """Return a function's name made from its chart's: `oci://…/rag:1.0` and `…/rag-1.0.tgz` are `rag`."""
    last = chart.rsplit("/", 1)[-1]
    stem = re.sub(r"(-v?[0-9][^-]*(-.*)?)?\.tgz$", "", re.split(r"[:@]", last, maxsplit=1)[0])
    return re.sub(r"[^a-zA-Z0-9_-]", "-", stem).lstrip("_-")[:128] or "function"
