"""Report progress of long work, and return a file as the result.

    nvcf deploy examples/progress/function.py --name fractal
    nvcf invoke fractal --data '{"width": 600, "rows": 400}' -i

It draws the Mandelbrot set as a PGM picture, row by row. A waiting caller gets the progress as a 202 with
NVCF-PERCENT-COMPLETE, and then polls. The picture is written to `request.output_dir`. The final response
is a 302 to the zipped file.
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
    """The size of a picture."""

    width: int = 300
    rows: int = 200


def row(picture: Picture, number: int) -> bytes:
    """Return one row of grey values: how soon each point escapes."""
    imaginary = 2.4 * number / picture.rows - 1.2
    return bytes(escape(complex(3.2 * x / picture.width - 2.2, imaginary)) for x in range(picture.width))


def escape(point: complex) -> int:
    """Return 0 for points of the set, else a value that is brighter the later the point escapes."""
    value = 0j
    for step in range(DEPTH):
        value = value * value + point
        if abs(value) > 2:
            return 55 + step * 2
    return 0


def parse(body: Any) -> Picture:
    """Return the size from a body. Raises BadInput."""
    wanted = body if isinstance(body, dict) else {}
    sides = [wanted.get(name, default) for name, default in (("width", 300), ("rows", 200))]
    if not all(type(side) is int and 1 <= side <= MOST for side in sides):
        raise BadInput(f'send {{"width": ..., "rows": ...}}, whole numbers from 1 to {MOST}')
    return Picture(*sides)


def handler(request: SyncRequest) -> dict[str, Any]:
    """Draw the picture. Stop if no caller waits any more."""
    picture = parse(request.json())
    reported = 0
    with (request.output_dir / "mandelbrot.pgm").open("wb") as file:
        file.write(b"P5 %d %d 255\n" % (picture.width, picture.rows))
        for number in range(picture.rows):
            if request.cancelled:
                break
            file.write(row(picture, number))
            done = STEPS * (number + 1) // picture.rows
            if done > reported:
                reported = done
                request.progress(100 * done / STEPS, partial={"rows": number + 1})
    return {"width": picture.width, "rows": picture.rows}


if __name__ == "__main__":
    serve(handler)
