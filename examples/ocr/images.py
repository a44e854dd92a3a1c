"""Draw pictures of text, each with its true text, in the font that is part of Pillow.

The same seed always gives the same bytes, so a score that changes means that the recogniser changed.
`python examples/ocr/images.py FOLDER` writes them as files for use with `nvcf invoke`.
"""

from __future__ import annotations

import io
import random
import sys
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

SEED = 20
MARGIN = 24


@dataclass(frozen=True, slots=True)
class Scene:
    """What to draw. `degrees` turns the sheet counter-clockwise, `noise` is the grain's standard deviation in
    grey levels, `blur` a radius in pixels; `size` is the font's, in pixels."""

    name: str
    lines: tuple[str, ...]
    size: int = 32
    degrees: float = 0.0
    noise: float = 0.0
    blur: float = 0.0
    ink: int = 20
    paper: int = 250
    file_type: str = "PNG"

    @property
    def truth(self) -> str:
        return "\n".join(self.lines)


@dataclass(frozen=True, slots=True)
class Sample:
    """A drawn scene: the encoded picture and its text."""

    scene: Scene
    data: bytes

    @property
    def content_type(self) -> str:
        return f"image/{self.scene.file_type.lower()}"

    @property
    def file_name(self) -> str:
        return f"{self.scene.name.replace(' ', '-')}.{self.scene.file_type.lower()}"


SCENES: tuple[Scene, ...] = (
    Scene("plain", ("The quick brown fox", "jumps over the lazy dog"), size=34),
    Scene("small print", ("Keep dry and away from direct sunlight.", "Best before 14 March 2031"), size=17),
    Scene("large sign", ("PLATFORM 9",), size=96),
    Scene("receipt", ("Espresso 2.40", "Oat milk 0.60", "TOTAL 3.00 EUR"), size=28, file_type="JPEG"),
    Scene("tilted left", ("Meeting moved to room B214", "Thursday at 15:30"), size=30, degrees=6),
    Scene("tilted right", ("Invoice no. 58817", "Due in 30 days"), size=32, degrees=-12),
    Scene("upside down", ("FRAGILE - this side up",), size=40, degrees=180),
    Scene("grainy", ("Signal lost at 04:17", "retrying in 8 seconds"), size=32, noise=50),
    Scene("faint fax", ("Order 7731 confirmed",), size=30, ink=150, paper=215, noise=18, blur=0.8),
    Scene("tilted and grainy", ("Gate closes 10 minutes", "before departure"), size=32, degrees=9, noise=45),
    Scene("blurred", ("Beware of the dog",), size=30, blur=2.4, noise=10, file_type="JPEG"),
    Scene("nearly lost", ("Do not read me",), size=22, blur=2.0, noise=70, ink=110, paper=190),
)


def make_samples(scenes: tuple[Scene, ...] = SCENES, seed: int = SEED) -> list[Sample]:
    return [Sample(scene, draw(scene, random.Random(f"{seed}/{scene.name}"))) for scene in scenes]


def draw(scene: Scene, rng: random.Random) -> bytes:
    """Draw a scene, turn it, blur it and add noise, as a camera does with a sheet of paper."""
    sheet = _sheet(scene)
    if scene.degrees:
        sheet = sheet.rotate(
            scene.degrees, resample=Image.Resampling.BICUBIC, expand=True, fillcolor=scene.paper
        )
    if scene.blur:
        sheet = sheet.filter(ImageFilter.GaussianBlur(scene.blur))
    if scene.noise:
        sheet = _add_grain(sheet, scene.noise, rng)
    encoded = io.BytesIO()
    sheet.convert("RGB").save(encoded, scene.file_type)
    return encoded.getvalue()


def _sheet(scene: Scene) -> Image.Image:
    font = ImageFont.load_default(size=scene.size)
    spacing = scene.size // 2
    ruler = ImageDraw.Draw(Image.new("L", (1, 1)))
    box = ruler.multiline_textbbox((0, 0), scene.truth, font=font, spacing=spacing)
    size = (int(box[2] - box[0]) + 2 * MARGIN, int(box[3] - box[1]) + 2 * MARGIN)
    sheet = Image.new("L", size, scene.paper)
    position = (MARGIN - box[0], MARGIN - box[1])
    ImageDraw.Draw(sheet).multiline_text(position, scene.truth, fill=scene.ink, font=font, spacing=spacing)
    return sheet


def _add_grain(sheet: Image.Image, deviation: float, rng: random.Random) -> Image.Image:
    # Image.effect_noise cannot be seeded. The sum of four uniform bytes is nearly normally distributed.
    layers = [rng.randbytes(sheet.width * sheet.height) for _ in range(4)]
    scale = deviation / 147.8  # standard deviation of the sum of four uniform bytes
    sums = map(sum, zip(*layers, strict=True))
    grain = bytes(max(0, min(255, 128 + round((total - 510) * scale))) for total in sums)
    return ImageChops.add(sheet, Image.frombytes("L", sheet.size, grain), scale=1.0, offset=-128)


def similarity(truth: str, recognised: str) -> float:
    """Return the similarity of two texts, 0 to 1. White space counts only between words."""
    return SequenceMatcher(
        None, " ".join(truth.split()), " ".join(recognised.split()), autojunk=False
    ).ratio()


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python examples/ocr/images.py FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    samples = make_samples()
    for sample in samples:
        path = folder / sample.file_name
        path.write_bytes(sample.data)
        path.with_suffix(".txt").write_text(sample.scene.truth + "\n", encoding="utf-8")
    print(f"{len(samples)} pictures in {folder}, each with its text beside it")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
