"""The agent's identity: its cluster's key, or a projected service account token, in a file."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from nvcf_agent.errors import IdentityError

_LARGEST = 16 * 1024


@dataclass(frozen=True)
class Identity:
    """Reads the file at each use, since a token in it is replaced before it expires."""

    path: Path

    def read(self) -> str:
        """Return the key or token. Blocking, but short. Raises `IdentityError`."""
        try:
            with self.path.open("rb") as file:
                text = file.read(_LARGEST + 1).decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise IdentityError(f"cannot read the agent's key or token in {self.path}: {error}") from error
        if not text or len(text) > _LARGEST or any(each.isspace() for each in text):
            raise IdentityError(f"{self.path} must contain exactly one key or token")
        return text

    async def current(self) -> str:
        """Return the key or token. Raises `IdentityError`."""
        return await asyncio.to_thread(self.read)
