"""Images of the product and of sample functions, made from this tree as the Dockerfiles make them.

The file systems come from `scripts/image_root.py`, which the Dockerfiles run too. Only the packages are not
installed again: they are copied from the environment of the tests, which has the same lock file.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from pathlib import Path

from scripts import image_root

from nvcf_broker.binary import find_binary
from tests.kubernetes.cluster.images import Content, Image, Text, write_archive, write_layer

HERE = Path(__file__).parent
REGISTRY = "registry.local"
TAG = "test"
USER = f"{image_root.USER}:{image_root.USER}"
ENVIRONMENT = {"PYTHONPATH": "/opt/project:/opt/packages", "PYTHONUNBUFFERED": "1"}
ENTRYPOINTS = {
    "gateway": ("nvcf-gateway", ["-m", "nvcf_gateway"]),
    "autoscaler": ("nvcf-autoscaler", ["-m", "nvcf_autoscaler"]),
    "agent": ("nvcf-agent", ["-m", "nvcf_agent"]),
    "worker": ("nvcf-worker", ["-m", "nvcf_worker"]),
}


def name(repository: str) -> str:
    """Return the full name of one of these images."""
    return f"{REGISTRY}/{repository}:{TAG}"


def write_product(target: Path, folder: Path, helm: Path) -> None:
    """Write an archive with all images. `folder` is for the files on the way."""
    base = folder / "base"
    image_root.system(base)
    image_root.interpreter(base)
    image_root.libraries(base)
    image_root.compile_all(base)
    system = write_layer(folder / "base.layer", tree(base))
    images = []
    for part, (repository, arguments) in ENTRYPOINTS.items():
        root = folder / part
        shutil.copytree(base, root, symlinks=True, copy_function=os.link)
        for written_again in ("ld.so.conf", "ld.so.cache"):
            (root / "etc" / written_again).unlink()
        copy_packages(part, root)
        image_root.copy_code(part, root)
        image_root.libraries(root)
        image_root.compile_all(root, image_root.PACKAGES, image_root.CODE)
        own = {path: content for path, content in tree(root).items() if not _linked(content)}
        if part == "agent":
            own["/usr/local/bin/helm"] = helm
        layers = [system, write_layer(folder / f"{part}.layer", own)]
        command = ["sidecar"] if part == "worker" else []
        entrypoint = ["python3", *arguments]
        images.append(Image(name(repository), layers, entrypoint, command, ENVIRONMENT, user=USER))
        if part == "worker":
            function = write_layer(folder / "library.layer", _function("library"))
            images.append(
                Image(
                    name("library-function"),
                    [*layers, function],
                    entrypoint,
                    ["function.py:handler"],
                    ENVIRONMENT,
                    user=USER,
                    working_directory="/function",
                )
            )
    plain = write_layer(folder / "plain.layer", _function("plain"))
    images.append(
        Image(name("plain-function"), [system, plain], ["python3", "/function/function.py"], user=USER)
    )
    images.append(Image(name("plain-task"), [system], ["python3"], user=USER))
    server: dict[str, Content] = {"/usr/local/bin/nats-server": find_binary().path}
    nats = write_layer(folder / "nats.layer", server)
    images.append(Image(name("nats"), [system, nats], ["nats-server"], user=USER))
    write_archive(target, images)


def copy_packages(part: str, root: Path) -> None:
    """Copy the packages that an image needs from the environment of the tests."""
    for distribution in map(importlib.metadata.distribution, image_root.packages_of(part)):
        for file in distribution.files or ():
            source = Path(str(file.locate()))
            if ".." not in file.parts and "__pycache__" not in file.parts and source.is_file():
                target = root / image_root.PACKAGES / Path(*file.parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)


def tree(root: Path) -> dict[str, Content]:
    """Return all files of a folder, by their paths in the image."""
    return {f"/{path.relative_to(root)}": path for path in root.rglob("*")}


def _linked(content: Content) -> bool:
    """Return whether a file is one of the base's, which several images share."""
    return isinstance(content, Path) and content.is_file() and content.stat().st_nlink > 1


def _function(kind: str) -> dict[str, Content]:
    return {"/function/function.py": Text((HERE / "functions" / f"{kind}.py").read_bytes())}
