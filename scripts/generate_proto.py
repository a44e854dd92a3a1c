"""Generate the protobuf and gRPC code of nvcf_proto from its .proto files.

`--check` generates into a temporary folder and exits 1 when the tree's files differ from that.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "proto"
PACKAGE = "nvcf_proto/pb"


def generate(out: Path) -> list[Path]:
    """Write the generated modules below `out` and return their paths."""
    import importlib.resources

    well_known = str(importlib.resources.files("grpc_tools") / "_proto")
    sources = sorted(str(path.relative_to(SOURCE)) for path in (SOURCE / PACKAGE).glob("*.proto"))
    code = protoc.main(
        [
            "protoc",
            f"-I{SOURCE}",
            f"-I{well_known}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_out=quiet:{out}",
            f"--mypy_grpc_out=quiet:{out}",
            *sources,
        ]
    )
    if code:
        raise SystemExit(f"protoc failed with exit code {code}")
    return sorted(
        path for path in (out / PACKAGE).iterdir() if path.suffix in {".py", ".pyi"} and "_pb2" in path.name
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="compare only; exit 1 when the tree is not current"
    )
    if not parser.parse_args().check:
        for path in generate(SOURCE):
            print(f"wrote {path.relative_to(ROOT)}")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        stale = [path.name for path in generate(Path(folder)) if path.read_text() != _current(path.name)]
    if stale:
        print(f"not current: {', '.join(stale)}; run: python scripts/generate_proto.py", file=sys.stderr)
    return 1 if stale else 0


def _current(name: str) -> str:
    path = SOURCE / PACKAGE / name
    return path.read_text() if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
