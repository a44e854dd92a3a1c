"""A user of its own for the instances of each account: a number of a range, kept in the agent's folder.

The numbers need no entry in /etc/passwd. A new account gets a random one, so that two agents on a machine do
not give the same number to two accounts; with a narrow range, give each agent its own.
"""

import json
import random
import re
import threading
from dataclasses import dataclass
from pathlib import Path

from nvcf_agent.errors import AgentError, Refused, StartError
from nvcf_broker.files import write_private

_ATTEMPTS = 1000
_LARGEST = 2**32 - 2


@dataclass(frozen=True)
class UidRange:
    """Numbers of users, both ends included."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> "UidRange":
        """Return the range of a text FIRST-LAST. Raises `AgentError`."""
        match = re.fullmatch(r"([0-9]{1,10})-([0-9]{1,10})", text)
        if match is None or not 1000 <= int(match[1]) <= int(match[2]) <= _LARGEST:
            raise AgentError(f"--instance-uid-range {text}: FIRST-LAST from 1000 on expected, or none")
        return cls(int(match[1]), int(match[2]))


# Left free by the usual conventions: above those of containers, below those of the kernel's 31 bits.
DEFAULT_RANGE = UidRange(1_900_000_000, 2_099_999_999)


def parse_range(text: str | None) -> UidRange | None:
    """Return the range of an option's text; None for `none`, the agent's own user. Raises `AgentError`."""
    if text == "none":
        return None
    return DEFAULT_RANGE if text is None else UidRange.parse(text)


class InstanceUsers:
    """The users of accounts, in a file: JSON, account to number. Its methods block."""

    def __init__(self, file: Path, numbers: UidRange) -> None:
        self._file = file
        self._numbers = numbers
        # Instances start on several threads: two first ones of an account must not get two users.
        self._lock = threading.Lock()

    def uid(self, account: str) -> int:
        """Return the account's user, a new one at first. Raises `StartError` and `Refused`."""
        with self._lock:
            users = self._load()
            if account not in users:
                users[account] = self._choose(set(users.values()))
                try:
                    write_private(self._file, json.dumps(users))
                except OSError as error:
                    raise StartError(f"cannot write {self._file}: {error.strerror or error}") from error
            return users[account]

    def _load(self) -> dict[str, int]:
        try:
            document = json.loads(self._file.read_text(encoding="utf-8"))
            return {str(account): int(uid) for account, uid in document.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            # New numbers would give one account the files of another.
            raise StartError(f"cannot read {self._file}: {error}; repair it or restore it") from error

    def _choose(self, taken: set[int]) -> int:
        first, last = self._numbers.first, self._numbers.last
        for _ in range(_ATTEMPTS):
            uid = random.randint(first, last)  # noqa: S311 - only to be another agent's seldom
            if uid not in taken:
                return uid
        for uid in range(first, min(last, first + len(taken)) + 1):
            if uid not in taken:
                return uid
        raise Refused(f"all users of --instance-uid-range {first}-{last} are taken: give a larger range")
