"""What an instance with a user of its own sees of the file system: which folders to cover, what to bind.

The user cannot pass a folder that is closed to others, like the platform's data folder or root's home. Such a
folder is covered by an empty one, into which only what the instance needs is bound.
"""

import os
import stat
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

_LINKS_FOLLOWED = 40


@dataclass(frozen=True, order=True)
class Step:
    """One step of the view: `cover` a folder, `bind` a path to its own place, or make a `link`."""

    path: Path
    kind: str
    target: str = ""


def resolve_links(path: Path) -> tuple[Path, dict[Path, str]]:
    """Return the real path, and the links on the way to it with their targets."""
    links: dict[Path, str] = {}
    parts = list(reversed(path.absolute().parts[1:]))
    real, left = Path("/"), _LINKS_FOLLOWED
    while parts:
        part = parts.pop()
        if part == "..":
            real = real.parent
            continue
        step = real / part
        if left > 0 and step.is_symlink():
            left -= 1
            links[step] = target = os.readlink(step)
            parts.extend(reversed([each for each in Path(target).parts if each != "/"]))
            real = Path("/") if target.startswith("/") else real
        else:
            real = step
    return real, links


def view(
    needed: Iterable[Path],
    opened: Iterable[Path],
    links: dict[Path, str],
    is_closed: Callable[[Path], bool],
    hidden: Collection[Path] = (),
) -> list[Step]:
    """Return the steps of a view, parents first. Pure.

    needed: real paths to show. opened: folders that the instance enters itself; in a closed one, `needed` has
    what it may see of it. is_closed: whether others may not enter a folder. hidden: folders that are covered
    in any case.
    """
    needed, opened = set(needed), set(opened)
    covers = {parent for path in needed | opened for parent in path.parents if is_closed(parent)}
    covers |= {path for path in opened if is_closed(path)} | set(hidden)
    covers.discard(Path("/"))
    kinds = dict.fromkeys(links, "link")
    kinds |= dict.fromkeys(needed | opened, "bind")
    kinds |= dict.fromkeys(covers, "cover")
    steps: dict[Path, Step] = {}
    for path, kind in sorted(kinds.items()):
        nearest = next((steps[parent] for parent in path.parents if parent in steps), None)
        covered = nearest is not None and nearest.kind == "cover"
        # Below a cover everything is hidden already; elsewhere everything is there already.
        if covered != (kind == "cover"):
            steps[path] = Step(path, kind, links.get(path, ""))
    return list(steps.values())


def is_closed(path: Path) -> bool:
    """Return whether users other than a folder's owner may not enter it."""
    try:
        return not path.stat().st_mode & stat.S_IXOTH
    except OSError:
        return False


def visible_entries(folder: Path) -> list[Path]:
    """Return what others may read of a closed folder's content, without hidden entries and links."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.is_symlink():
                continue
            mode = entry.stat(follow_symlinks=False).st_mode
            folder_mode = stat.S_IROTH | stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH
            if mode & folder_mode == folder_mode and (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                found.append(Path(entry.path))
    return found


def interpreter_folders(python: Path) -> list[Path]:
    """Return the folders that an interpreter reads: its environment, its base, and paths in `.pth` files.

    Nothing is executed: the interpreter may be anybody's, and this may be root.
    """
    prefix, real = python.parent.parent, Path(os.path.realpath(python))
    found = [prefix, real.parent.parent]
    try:
        settings = (prefix / "pyvenv.cfg").read_text(encoding="utf-8", errors="replace")
    except OSError:
        settings = ""
    for line in settings.splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "home":
            found.append(Path(value.strip()).parent)
    for site in (prefix / "lib").glob("python3*/site-packages/*.pth"):
        lines = site.read_text(encoding="utf-8", errors="replace").splitlines()
        found += [Path(line) for line in lines if line.startswith("/") and Path(line).is_dir()]
    # A whole root or /usr is never closed, and never to be bound as a whole.
    return [path for path in dict.fromkeys(found) if len(path.parts) > 2]
