"""Write the root file system of an image of this project: the interpreter, locked packages, and the code.

    python scripts/image_root.py gateway /image      (as the Dockerfiles do)

There is no shell and no package manager in it, so it is small and little can be abused. Only packages that
requirements.lock pins with hashes are installed, and of these only what the part needs.
"""

from __future__ import annotations

import argparse
import compileall
import os
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
USER = 10001
PACKAGES, CODE = "opt/packages", "opt/project"
COMMON = ("proto/nvcf_proto", "broker/nvcf_broker", "otel/nvcf_otel")
# Of each image: extras of pyproject.toml, further packages of the lock, and packages of this tree.
IMAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "gateway": (("gateway", "otel"), (), (*COMMON, "gateway/nvcf_gateway")),
    "autoscaler": (("autoscaler", "otel"), (), (*COMMON, "autoscaler/nvcf_autoscaler")),
    "agent": (("agent", "kubernetes", "otel"), (), (*COMMON, "agent/nvcf_agent")),
    "worker": (("otel",), ("uvloop",), (*COMMON, "worker_runtime/nvcf_worker")),
}
FOLDERS = ("config/shared", "function", "data")
"""Folders that the user may write to where nothing is mounted."""
_LEFT_OUT = shutil.ignore_patterns(
    "__pycache__", "*.pyc", "*.a", "site-packages", "test", "tests", "idlelib", "tkinter", "turtledemo",
    "ensurepip", "lib2to3", "config-3*", "pydoc_data",
)  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def normal(name: str) -> str:
    """Return a distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(text: str) -> dict[str, tuple[str, set[str]]]:
    """Return the entries of a lock file: by name the lines to install it, and who needs it (`# via`)."""
    found: dict[str, tuple[str, set[str]]] = {}
    for block in re.split(r"\n(?=[A-Za-z0-9])", text):
        if (match := _NAME.match(block)) is None:
            continue
        lines = block.rstrip().splitlines()
        comments = " ".join(line.strip(" #") for line in lines if line.lstrip().startswith("#"))
        by = {normal(word) for word in comments.removeprefix("via").split()}
        entry = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
        found[normal(match[0])] = entry, by
    return found


def needed(lock: dict[str, tuple[str, set[str]]], wanted: Iterable[str]) -> list[str]:
    """Return the names of these packages and of all that they need, sorted. Raises KeyError for others."""
    ahead, done = [normal(name) for name in wanted], set[str]()
    while ahead:
        name = ahead.pop()
        if name not in done:
            _ = lock[name]
            done.add(name)
            ahead += [other for other, (_, by) in lock.items() if name in by]
    return sorted(done)


def packages_of(image: str) -> list[str]:
    """Return the names of the packages that an image needs."""
    return needed(locked((ROOT / "requirements.lock").read_text(encoding="utf-8")), _listed(image))


def requirements(image: str) -> str:
    """Return the part of requirements.lock that an image needs."""
    lock = locked((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    return "\n".join(lock[name][0] for name in needed(lock, _listed(image))) + "\n"


def _listed(image: str) -> list[str]:
    extras, further, _ = IMAGES[image]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [*project["dependencies"], *further]
    for extra in extras:
        listed += project["optional-dependencies"][extra]
    return [match[0] for each in listed if (match := _NAME.match(each)) is not None]


def install(image: str, target: Path) -> None:
    """Install the locked packages."""
    packages = target / PACKAGES
    packages.mkdir(parents=True)
    lock = target / "requirements.lock"
    lock.write_text(requirements(image), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--no-cache-dir"]
    pip += ["--disable-pip-version-check", "--root-user-action=ignore"]
    # nkeys is published as source only.
    pip += ["--only-binary=:all:", "--no-binary=nkeys"]
    subprocess.run([*pip, "--require-hashes", "--target", str(packages), "-r", str(lock)], check=True)
    lock.unlink()
    shutil.rmtree(packages / "bin", ignore_errors=True)


def copy_code(image: str, target: Path) -> None:
    """Copy the packages of this tree, with the project's own metadata."""
    for source in IMAGES[image][2]:
        shutil.copytree(ROOT / source, target / CODE / Path(source).name, ignore=_LEFT_OUT)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    about = target / CODE / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    about.mkdir()
    text = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (about / "METADATA").write_text(text, encoding="utf-8")


def interpreter(target: Path) -> None:
    """Copy the interpreter that runs this, with its library, as /usr/local/bin/python3."""
    library = Path(sysconfig.get_path("stdlib"))
    program = Path(sys.executable).resolve()
    shutil.copytree(library, _inside(target, library), ignore=_LEFT_OUT)
    _inside(target, program).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(program, _inside(target, program))
    link = target / "usr/local/bin/python3"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(program)


def libraries(target: Path) -> None:
    """Copy the shared libraries that programs and modules need, and write the loader's cache."""
    binaries = [each for each in target.rglob("*") if each.is_file() and _is_elf(each)]
    found: set[Path] = set()
    for start in range(0, len(binaries), 100):
        command = ["ldd", *map(str, binaries[start : start + 100])]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        found |= {Path(os.path.normpath(name)) for name in re.findall(r"(/\S+) \(0x", said)}
    for each in found:
        # What a package brings itself is found from there.
        if not each.is_relative_to(target) and not _inside(target, each).exists():
            _inside(target, each).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(each.resolve(), _inside(target, each))
    folders = sorted({str(each.parent) for each in found if not each.is_relative_to(target)})
    (target / "etc/ld.so.conf").write_text("\n".join(folders) + "\n", encoding="utf-8")
    subprocess.run([shutil.which("ldconfig") or "/sbin/ldconfig", "-r", str(target)], check=True)


def system(target: Path) -> None:
    """Write users, name resolution, certificates and the folders that have to be there."""
    etc = target / "etc"
    etc.mkdir(parents=True)
    users = f"root:x:0:0:root:/:/sbin/nologin\nnvcf:x:{USER}:{USER}:nvcf:/:/sbin/nologin\n"
    (etc / "passwd").write_text(users, encoding="utf-8")
    (etc / "group").write_text(f"root:x:0:\nnvcf:x:{USER}:\n", encoding="utf-8")
    (etc / "nsswitch.conf").write_text("hosts: files dns\n", encoding="utf-8")
    certificates = Path("/etc/ssl/certs/ca-certificates.crt")
    if certificates.exists():
        (etc / "ssl/certs").mkdir(parents=True)
        shutil.copy2(certificates, etc / "ssl/certs")
        # OpenSSL looks here, too, in an interpreter that was not built for this system.
        (etc / "ssl/cert.pem").symlink_to("certs/ca-certificates.crt")
    (target / "tmp").mkdir()
    (target / "tmp").chmod(0o1777)
    for name in FOLDERS:
        (target / name).mkdir(parents=True)
        os.chown(target / name, USER, USER)


def compile_all(target: Path, *folders: str) -> None:
    """Compile all modules, or those of some folders: nobody can at run time, on a read-only file system."""
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    for folder in folders or (".",):
        compileall.compile_dir(
            target / folder,
            maxlevels=40,
            quiet=2,
            stripdir=str(target),
            prependdir="/",
            invalidation_mode=mode,
        )


def _inside(target: Path, path: Path) -> Path:
    return target / path.relative_to("/")


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def main() -> None:
    """Write the file system."""
    parser = argparse.ArgumentParser(description="Write the root file system of an image of this project.")
    parser.add_argument("image", choices=IMAGES)
    parser.add_argument("target", type=Path, nargs="?", help="a new folder")
    parser.add_argument("--lock", action="store_true", help="print the locked packages of the image instead")
    options = parser.parse_args()
    if options.lock:
        print(requirements(options.image), end="")
        return
    if options.target is None:
        parser.error("name a new folder")
    target: Path = options.target.absolute()
    system(target)
    install(options.image, target)
    copy_code(options.image, target)
    interpreter(target)
    libraries(target)
    compile_all(target)


if __name__ == "__main__":
    main()
