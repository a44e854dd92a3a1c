"""Pictures of digits: drawn, moved, tilted and noisy.

`python examples/digits/pictures.py FOLDER [COUNT]` writes some as files `NUMBER-DIGIT.png` (default: 60).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SIZE = 20
NOISE = 0.1
TILT = 30.0

Floats = NDArray[np.float32]


def draw(digit: int, tilt: float, random: np.random.Generator) -> Image.Image:
    """Return a grey picture of a digit, tilted by up to so many degrees to either side."""
    picture = Image.new("L", (SIZE, SIZE))
    font = ImageFont.load_default(random.uniform(15, 19))
    centre = (SIZE / 2 + random.uniform(-1, 1), SIZE / 2 + random.uniform(-1, 1))
    ImageDraw.Draw(picture).text(centre, str(digit), fill=255, font=font, anchor="mm")
    tilted = picture.rotate(random.uniform(-tilt, tilt), resample=Image.Resampling.BILINEAR)
    noise = random.normal(0, NOISE * 255, (SIZE, SIZE))
    return Image.fromarray((np.asarray(tilted) + noise).clip(0, 255).astype(np.uint8))


def pixels(picture: Image.Image) -> Floats:
    """Return a picture as the network wants it: SIZE x SIZE values, 0 to 1, in one row."""
    grey = picture.convert("L").resize((SIZE, SIZE))
    return (np.asarray(grey, np.float32) / 255).reshape(-1)


def examples(count: int, tilt: float, seed: int) -> tuple[Floats, NDArray[np.int64]]:
    """Return pictures as rows, and their digits."""
    random = np.random.default_rng(seed)
    digits = random.integers(0, 10, count)
    return np.stack([pixels(draw(int(digit), tilt, random)) for digit in digits]), digits


def main() -> None:
    """Write pictures to a folder."""
    if len(sys.argv) < 2:
        raise SystemExit("usage: python examples/digits/pictures.py FOLDER [COUNT]")
    folder = Path(sys.argv[1])
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 60
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(5)
    for number in range(count):
        draw(number % 10, TILT, random).save(folder / f"{number:04d}-{number % 10}.png")


if __name__ == "__main__":
    main()
