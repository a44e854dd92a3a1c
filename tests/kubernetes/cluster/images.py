"""Write container images as an OCI archive, from files of this machine and without a container tool.

Layers are plain tar files: to compress them would take longer than to write and import them. A layer that
several images have is in the archive once.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_PATH = "PATH=/usr/local/bin:/usr/bin:/bin"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Layer:
    """A tar file and its SHA-256."""

    path: Path
    digest: str


@dataclass(frozen=True)
class Image:
    """An image with its configuration. `name` has a tag."""

    name: str
    layers: Sequence[Layer]
    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    working_directory: str = "/"


@dataclass(frozen=True)
class Text:
    """A file of a layer, given by its content."""

    content: bytes
    mode: int = 0o644


@dataclass(frozen=True)
class Folder:
    """A folder of a layer."""

    mode: int = 0o755


Content = Path | Text | Folder


def write_layer(target: Path, files: Mapping[str, Content]) -> Layer:
    """Write a layer with files by their absolute paths in the image. The same files give the same digest."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in sorted({**_parents(files), **files}.items()):
            _add(archive, name.strip("/"), content)
    return Layer(target, _file_digest(target))


def write_archive(target: Path, images: Iterable[Image], architecture: str = "amd64") -> None:
    """Write images into one archive that `ctr images import` takes."""
    with tarfile.open(target, "w") as archive:
        written: set[str] = set()

        def blob(content: bytes, media_type: str) -> dict[str, object]:
            digest = hashlib.sha256(content).hexdigest()
            if digest not in written:
                written.add(digest)
                _add(archive, f"blobs/sha256/{digest}", Text(content))
            return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

        manifests = []
        for image in images:
            layers = []
            for layer in image.layers:
                if layer.digest not in written:
                    written.add(layer.digest)
                    _add(archive, f"blobs/sha256/{layer.digest}", layer.path)
                size = layer.path.stat().st_size
                layers.append({"mediaType": _LAYER, "digest": f"sha256:{layer.digest}", "size": size})
            config = blob(json.dumps(_config(image, architecture)).encode(), _CONFIG)
            manifest = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": config, "layers": layers}
            entry = blob(json.dumps(manifest).encode(), _MANIFEST)
            entry["annotations"] = {"io.containerd.image.name": image.name}
            entry["platform"] = {"architecture": architecture, "os": "linux"}
            manifests.append(entry)
        index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": manifests}
        _add(archive, "index.json", Text(json.dumps(index).encode()))
        _add(archive, "oci-layout", Text(b'{"imageLayoutVersion":"1.0.0"}'))


def _config(image: Image, architecture: str) -> dict[str, object]:
    return {
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Env": [_PATH, *(f"{name}={value}" for name, value in image.environment.items())],
            "Entrypoint": list(image.entrypoint),
            "Cmd": list(image.command),
            "Labels": dict(image.labels),
            "User": image.user,
            "WorkingDir": image.working_directory,
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.digest}" for layer in image.layers]},
    }


def _parents(files: Mapping[str, Content]) -> dict[str, Content]:
    found: dict[str, Content] = {}
    for name in files:
        found |= {str(parent): Folder() for parent in Path(name).parents if parent.name}
    return found


def _add(archive: tarfile.TarFile, name: str, content: Content) -> None:
    """Add one file with nothing of this machine in it but its bytes and its mode."""
    match content:
        case Path():
            info = archive.gettarinfo(content, name)
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            info.mtime = 0
            if info.isreg():
                with content.open("rb") as file:
                    archive.addfile(info, file)
            else:
                archive.addfile(info)
        case Text():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content.content), content.mode
            archive.addfile(info, io.BytesIO(content.content))
        case Folder():
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, content.mode
            archive.addfile(info)


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
