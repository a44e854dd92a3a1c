"""Which interpreters and folders a function may name: the agent's allow list."""

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nvcf_agent.errors import AgentError, NotAllowed
from nvcf_proto.models import ProcessSource


@dataclass(frozen=True)
class Allowed:
    """The allow list.

    A file and a working directory must be in one of `folders`, links followed, and not in `private` ones.
    Hidden entries of `home` (`.ssh`, `.config`) count only if a folder of the list names them. An interpreter
    is one of `pythons`, or lies in an allowed folder.
    """

    pythons: tuple[Path, ...]
    folders: tuple[Path, ...]
    private: tuple[Path, ...] = ()
    home: Path | None = None

    def check(self, source: ProcessSource) -> None:
        """Raise `NotAllowed` for a source that names something else. Blocking: follows links."""
        for name, text in (("file", source.file), ("workingDirectory", source.working_directory)):
            path = Path(os.path.realpath(text))
            if not self.has_folder(path):
                raise NotAllowed(f"{name} {text} {self._why_not(path)}")
        if not (self.is_named(Path(source.python)) or self.has_folder(Path(os.path.abspath(source.python)))):
            raise NotAllowed(
                f"python {source.python} is not an allowed interpreter: use {self.pythons[0]}, "
                "or have the agent started with --allow-python"
            )

    def has_folder(self, path: Path) -> bool:
        """Return whether a real path is in an allowed folder."""
        if any(path.is_relative_to(each) for each in self.private):
            return False
        inside = [each for each in self.folders if path.is_relative_to(each)]
        return any(each != self.home or not _is_hidden(path.relative_to(each)) for each in inside)

    def is_named(self, python: Path) -> bool:
        """Return whether an interpreter is on the list itself, by any of its environment's names for it."""
        return any(_same_program(python, each) for each in self.pythons)

    def _why_not(self, path: Path) -> str:
        if any(path.is_relative_to(each) for each in self.private):
            return "is in a folder of the platform, which no function may name: move it"
        way_out = "move it, or have the agent started with --allow-folder"
        if any(path.is_relative_to(each) for each in self.folders):
            return f"is in a hidden folder of the home {self.home}: {way_out}"
        listed = ", ".join(map(str, self.folders)) or "there is none"
        return f"is not in an allowed folder ({listed}): {way_out}"


def _is_hidden(relative: Path) -> bool:
    return bool(relative.parts) and relative.parts[0].startswith(".")


def _same_program(one: Path, other: Path) -> bool:
    # Not the programs alone: the environments of one base have the same program.
    same_folder = os.path.realpath(one.parent) == os.path.realpath(other.parent)
    return same_folder and os.path.realpath(one) == os.path.realpath(other)


def allow_list(pythons: Sequence[Path], folders: Sequence[Path], private: Sequence[Path]) -> Allowed:
    """Return the allow list of an agent's options. Raises `AgentError`.

    Without folders: the home of the agent's user, the folder where it was started, and that for temporary
    files. The agent's own interpreter is always on the list.
    """
    for folder in folders:
        if not folder.is_dir():
            raise AgentError(f"--allow-folder {folder}: there is no such folder")
    for python in pythons:
        if not os.access(python, os.X_OK):
            raise AgentError(f"--allow-python {python}: there is no such program")
    home = Path(os.path.realpath(Path.home()))
    chosen = folders or (home, Path.cwd(), Path(tempfile.gettempdir()))
    real = [Path(os.path.realpath(each)) for each in chosen]
    return Allowed(
        pythons=(Path(sys.executable), *(each.absolute() for each in pythons)),
        # The root would allow everything; whoever wants that has to say so.
        folders=tuple(dict.fromkeys(each for each in real if folders or each != Path("/"))),
        private=tuple(Path(os.path.realpath(each)) for each in private),
        home=None if folders else home,
    )
