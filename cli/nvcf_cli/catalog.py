"""Finding functions and versions by what a user calls them. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from nvcf_cli.api import Json
from nvcf_cli.errors import CliError

INACTIVE = "INACTIVE"
# States of instances of which nothing runs any more; their records stay readable for some minutes.
FINISHED = ("COMPLETED", "FAILED")


@dataclass(frozen=True)
class Found:
    """A function: its id, its name, and its versions, oldest first."""

    id: str
    name: str
    versions: tuple[Json, ...]

    @property
    def deployed(self) -> tuple[Json, ...]:
        """The versions that have (or are to have) instances."""
        return tuple(each for each in self.versions if each.get("status") != INACTIVE)

    @property
    def newest(self) -> Json:
        """The version made last, deployed ones first."""
        return (self.deployed or self.versions)[-1]


def find_function(functions: Iterable[Json], wanted: str) -> Found | None:
    """Return the function with this name, function id or version id; None if there is none.

    Raises `CliError` for a name that several functions carry.
    """
    everything = list(functions)
    ids = {
        str(each.get("id"))
        for each in everything
        if wanted in (each.get("name"), each.get("id"), each.get("versionId"))
    }
    if not ids:
        return None
    if len(ids) > 1:
        raise CliError(
            f"{len(ids)} functions are called {wanted}: use one of the ids {', '.join(sorted(ids))}"
        )
    (function_id,) = ids
    versions = sorted(
        (each for each in everything if each.get("id") == function_id),
        key=lambda each: str(each.get("createdAt", "")),
    )
    return Found(function_id, str(versions[0].get("name", wanted)), tuple(versions))


def require_function(functions: Iterable[Json], wanted: str) -> Found:
    """Return the function like `find_function`. Raises `CliError`, which lists the names, for none."""
    everything = list(functions)
    found = find_function(everything, wanted)
    if found is None:
        names = sorted({str(each.get("name")) for each in everything})
        known = f"there are: {', '.join(names)}" if names else "deploy one with nvcf deploy function.py"
        raise CliError(f"there is no function {wanted}; {known}")
    return found
