"""Make inputs from good ones by random damage. The same seed makes the same inputs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

# Values that often break parsers: numbers at their limits, white space and digits that are not ASCII,
# lone surrogates, deep nesting, all kinds of line ends, wire types of protobuf.
TOKENS: tuple[bytes, ...] = (
    b"", b"\x00", b"\xff", b"\r\n", b"\n", b"\r\n\r\n", b" ", b"\t", b":", b",", b".", b"..", b"/", b"*",
    b">",
    b"0", b"-1", b"1", b"2147483648", b"18446744073709551616", b"9" * 5000, b"1e999", b"NaN", b"Infinity",
    b"-Infinity", b"null", b"true", b"{}", b"[]", b'""', b'"\\ud800"', b'"\\u0000"', b"\\ud800",
    b"[" * 990 + b"]" * 990, b"[" * 200_000, b'{"a":' * 400 + b"1" + b"}" * 400,
    b"\xb2", "²".encode(), "٣".encode(), "\u2028".encode(), b"%00", b"%ff", b"%", b"\xc3\x28",
    b"Content-Length: ", b"Content-Length: \xb2\r\n", b"Transfer-Encoding: chunked\r\n",
    b"NVCF-PERCENT-COMPLETE: \xb2\r\n", b"NVCF-POLL-SECONDS: 1\r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 ",
    b"HTTP/2.0", b"Bearer ", b"\x08", b"\x0a", b"\x12\xff\xff\xff\xff\x0f", b"\x80" * 11,
    b"00000000-0000-4000-8000-000000000000",
)  # fmt: skip

Step = Callable[[random.Random, bytearray], None]


def _flip(chance: random.Random, data: bytearray) -> None:
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _overwrite(chance: random.Random, data: bytearray) -> None:
    if data:
        data[chance.randrange(len(data))] = chance.randrange(256)


def _insert(chance: random.Random, data: bytearray) -> None:
    at = chance.randint(0, len(data))
    data[at:at] = chance.choice(TOKENS)


def _replace(chance: random.Random, data: bytearray) -> None:
    start = chance.randint(0, len(data))
    end = min(len(data), start + chance.randint(0, 8))
    data[start:end] = chance.choice(TOKENS)


def _replace_value(chance: random.Random, data: bytearray) -> None:
    """Replace the bytes between two delimiters, such as a JSON value or the text of a header."""
    delimiters = b' "\r\n:,{}[]?&=/'
    places = [place for place, byte in enumerate(data) if byte in delimiters]
    if len(places) < 2:
        return _replace(chance, data)
    first = chance.randrange(len(places) - 1)
    data[places[first] + 1 : places[first + 1]] = chance.choice(TOKENS)
    return None


def _delete(chance: random.Random, data: bytearray) -> None:
    start = chance.randint(0, len(data))
    del data[start : start + chance.randint(1, 16)]


def _repeat(chance: random.Random, data: bytearray) -> None:
    start = chance.randint(0, len(data))
    part = data[start : start + chance.randint(1, 64)]
    data[start:start] = part * chance.choice((1, 2, 70))


def _cut(chance: random.Random, data: bytearray) -> None:
    del data[chance.randint(0, len(data)) :]


def _swap_case(chance: random.Random, data: bytearray) -> None:
    start = chance.randint(0, len(data))
    data[start : start + 8] = data[start : start + 8].swapcase()


STEPS: tuple[Step, ...] = (
    _flip, _overwrite, _insert, _insert, _replace, _replace_value, _replace_value,
    _delete, _repeat, _cut, _swap_case,
)  # fmt: skip


class Mutator:
    """An endless supply of damaged inputs."""

    def __init__(self, seed: object) -> None:
        self.chance = random.Random(f"{seed}")

    def make(self, corpus: Sequence[bytes]) -> bytes:
        """Return a good input with up to six changes, sometimes spliced with another one, or noise."""
        chance = self.chance
        if chance.random() < 0.02:
            return chance.randbytes(chance.randint(0, 200))
        data = bytearray(chance.choice(corpus))
        if chance.random() < 0.1:
            other = chance.choice(corpus)
            data[chance.randint(0, len(data)) :] = other[chance.randint(0, len(other)) :]
        for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
            chance.choice(STEPS)(chance, data)
        return bytes(data)

    def pieces(self, data: bytes) -> list[bytes]:
        """Return the same bytes in one piece, or cut at random places."""
        if self.chance.random() < 0.5 or not data:
            return [data]
        ends = sorted(self.chance.randint(0, len(data)) for _ in range(self.chance.randint(1, 4)))
        return [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True)]
