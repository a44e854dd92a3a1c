"""Work that takes a while: progress for who waits, and a result that is a file.

    nvcf deploy examples/progress/function.py --name fractal
    nvcf invoke fractal --data '{"width": 600, "rows": 400}' -i

Draws the Mandelbrot set as a PGM picture, row by row. Whoever waits is told how far it is (202 with
NVCF-PERCENT-COMPLETE, then a poll); the picture is left in `request.output_dir`, and is answered as
a 302 to the zipped file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nvcf_worker import BadInput, SyncRequest, serve

MOST = 4000
DEPTH = 100
STEPS = 10


@dataclass
class Picture:
    """How large it is."""

    width: int = 300
    rows: int = 200


def row(picture: Picture, number: int) -> bytes:
    """One row of grey values: how soon each point escapes."""
    imaginary = 2.4 * number / picture.rows - 1.2
    return bytes(escape(complex(3.2 * x / picture.width - 2.2, imaginary)) for x in range(picture.width))


def escape(point: complex) -> int:
    """0 for points of the set, else brighter the later the point escapes."""
    value = 0j
    for step in range(DEPTH):
        value = value * value + point
        if abs(value) > 2:
            return 55 + step * 2
    return 0


def parse(body: Any) -> Picture:
    """Raises BadInput."""
    wanted = body if isinstance(body, dict) else {}
    sides = [wanted.get(name, default) for name, default in (("width", 300), ("rows", 200))]
    if not all(type(side) is int and 1 <= side <= MOST for side in sides):
        raise BadInput(f'send {{"width": ..., "rows": ...}}, whole numbers from 1 to {MOST}')
    return Picture(*sides)


def handler(request: SyncRequest) -> dict[str, Any]:
    """Draws; stops when nobody waits any more."""
    picture = parse(request.json())
    told = 0
    with (request.output_dir / "mandelbrot.pgm").open("wb") as file:
        file.write(b"P5 %d %d 255\n" % (picture.width, picture.rows))
        for number in range(picture.rows):
            if request.cancelled:
                break
            file.write(row(picture, number))
            done = STEPS * (number + 1) // picture.rows
            if done > told:
                told = done
                request.progress(100 * done / STEPS, partial={"rows": number + 1})
    return {"width": picture.width, "rows": picture.rows}


if __name__ == "__main__":
    serve(handler)
