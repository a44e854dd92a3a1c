"""What goes into the images of tests: programs with their libraries, this Python, installed packages."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement

from tests.kubernetes.cluster.errors import MissingError
from tests.kubernetes.cluster.images import Content, Folder, Text

PROJECT = "nvcf-worker"
ROOT = Path(__file__).parents[3]
BUSYBOX = Path("/bin/busybox")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PYTHON_HOME = Path(sys.base_prefix)
SITE_PACKAGES = "/opt/packages"
"""Where installed packages are in the images."""
PROJECT_CODE = "/opt/project"

_USERS = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
_GROUPS = b"root:x:0:\nnogroup:x:65534:\n"
_NOT_PACKED = {
    "__pycache__",
    "site-packages",
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "turtledemo",
    "ensurepip",
}
_NOT_PACKED_PATTERN = re.compile(r"\.(a|pyc)$|/config-3|/lib2to3/")


def system() -> dict[str, Content]:
    """Return busybox with a shell, users, certificates and a folder for temporary files."""
    if not BUSYBOX.exists():
        raise MissingError("the images of tests need a static busybox: apt-get install busybox-static")
    files: dict[str, Content] = {
        "/bin/busybox": BUSYBOX,
        "/bin/sh": BUSYBOX,
        "/etc/passwd": Text(_USERS),
        "/etc/group": Text(_GROUPS),
        "/etc/nsswitch.conf": Text(b"hosts: files dns\n"),
        "/tmp": Folder(0o1777),
    }
    if CERTIFICATES.exists():
        files[str(CERTIFICATES)] = CERTIFICATES
    return files


def python() -> dict[str, Content]:
    """Return this interpreter with its standard library and the libraries that they need, as `python3`."""
    library = Path(sysconfig.get_path("stdlib"))
    files = _tree(library, str(library))
    program = Path(sys.executable).resolve()
    files["/usr/local/bin/python3"] = program
    return with_libraries(files)


def python_environment() -> dict[str, str]:
    """Return the variables that an image with `python()` needs."""
    return {
        "PYTHONHOME": str(PYTHON_HOME),
        "PYTHONPATH": f"{PROJECT_CODE}:{SITE_PACKAGES}",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LD_LIBRARY_PATH": str(PYTHON_HOME / "lib"),
    }


def packages(*extras: str) -> dict[str, Content]:
    """Return the installed files of the project's dependencies, with those of its extras."""
    files: dict[str, Content] = {}
    for distribution in _closure(extras):
        for file in distribution.files or ():
            path = Path(str(file.locate())).resolve()
            if ".." not in file.parts and "__pycache__" not in file.parts and path.is_file():
                files[f"{SITE_PACKAGES}/{file}"] = path
    return with_libraries(files)


def project(*names: str) -> dict[str, Content]:
    """Return packages of this tree, such as `worker_runtime/nvcf_worker`."""
    files: dict[str, Content] = {}
    for name in names:
        files |= _tree(ROOT / name, f"{PROJECT_CODE}/{Path(name).name}")
    return files


def with_libraries(files: dict[str, Content]) -> dict[str, Content]:
    """Add the shared libraries that programs and extension modules need."""
    binaries = [path for path in files.values() if isinstance(path, Path) and _is_elf(path)]
    packed = {str(path) for path in binaries}
    return {**{name: Path(name).resolve() for name in sorted(_libraries(binaries) - packed)}, **files}


def _closure(extras: Iterable[str]) -> Iterator[importlib.metadata.Distribution]:
    """Yield the distributions that the project needs with these extras, without the project itself."""
    ahead = [(PROJECT, extra) for extra in ("", *extras)]
    done: set[tuple[str, str]] = set()
    named: set[str] = set()
    while ahead:
        name, extra = each = ahead.pop()
        if each in done:
            continue
        done.add(each)
        distribution = importlib.metadata.distribution(name)
        if name != PROJECT and name not in named:
            named.add(name)
            yield distribution
        for text in distribution.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                key = re.sub(r"[-_.]+", "-", requirement.name).lower()
                ahead += [(key, more) for more in ("", *requirement.extras)]


def _tree(source: Path, target: str) -> dict[str, Content]:
    files: dict[str, Content] = {}
    for folder, folders, names in os.walk(source):
        folders[:] = [name for name in folders if name not in _NOT_PACKED]
        for name in names:
            path = Path(folder, name)
            if not _NOT_PACKED_PATTERN.search(str(path)):
                files[f"{target}/{path.relative_to(source)}"] = path
    return files


def _is_elf(path: Path) -> bool:
    if not (os.access(path, os.X_OK) or ".so" in path.name):
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _libraries(binaries: list[Path]) -> set[str]:
    found: set[str] = set()
    for start in range(0, len(binaries), 100):
        command = ["ldd", *map(str, binaries[start : start + 100])]
        said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stdout
        found |= {os.path.normpath(name) for name in re.findall(r"(/\S+) \(0x", said)}
    return found
