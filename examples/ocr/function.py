"""Read the text in a picture: PNG or JPEG in, JSON out.

    nvcf deploy examples/ocr/function.py --name ocr
    nvcf invoke ocr --data @picture.png

The models (detector, direction classifier, recogniser) are part of the rapidocr wheel and run on the CPU.
A function file is loaded without its folder, so all code is in this file.
"""

from __future__ import annotations

import io
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from nvcf_worker import FunctionError, SyncRequest, serve

MAX_BODY = 16 * 1024 * 1024
MAX_PIXELS = 25_000_000
# With a larger ratio the model's fixed input size shrinks the short side to nothing.
MAX_ASPECT = 25
MAX_PASSES = 1000
# The number of times to read the same picture, to measure it or to keep a worker busy.
PASSES_HEADER = "x-ocr-passes"

# `decode` has a lower limit of its own. Pillow would only warn.
Image.MAX_IMAGE_PIXELS = None

LOG = logging.getLogger("ocr")


class Refused(FunctionError):
    """An error of the caller. The response has this status and a problem document with the detail."""

    def __init__(self, status: int, title: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.title = title


def load() -> Callable[[Any], Any]:
    """Load the models and read one blank page, so that the first request is as fast as later ones."""
    # ONNX Runtime sends usage data to its maker unless this is set before its import.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    from rapidocr import RapidOCR

    # Instances share the machine: each uses one thread, and more instances give more throughput.
    cv2.setNumThreads(1)
    model: Callable[[Any], Any] = RapidOCR(
        params={
            "Global.log_level": "warning",
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            # The detector gets the short side enlarged to this; the default, 736, is much slower.
            "Det.limit_type": "min",
            "Det.limit_side_len": 224,
            # How far a found line is widened before it is read: with less, blanks between words get lost.
            "Det.unclip_ratio": 2.2,
        }
    )
    model(np.full((320, 320, 3), 255, dtype=np.uint8))
    return model


MODEL = load()
# RapidOCR keeps state of the current picture on itself.
MODEL_LOCK = threading.Lock()


def decode(data: bytes) -> Image.Image:
    """Raises `Refused` for anything but a whole PNG or JPEG of a reasonable size."""
    if not data:
        raise Refused(400, "Empty body", "send a PNG or JPEG picture as the request body")
    try:
        picture = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        if picture.width * picture.height > MAX_PIXELS:
            size = f"{picture.width} x {picture.height}"
            raise Refused(422, "Picture too large", f"{size} pixels; at most {MAX_PIXELS:,} in all")
        if max(picture.size) > MAX_ASPECT * min(picture.size):
            raise Refused(422, "Picture too narrow", f"one side is more than {MAX_ASPECT} times the other")
        turned: Image.Image = ImageOps.exif_transpose(picture)
        return turned.convert("RGB")
    except UnidentifiedImageError:
        raise Refused(422, "Not a picture", "the body is neither a PNG nor a JPEG picture") from None
    except (OSError, SyntaxError, ValueError) as error:
        # Pillow raises these for a file with a valid start and broken data (SyntaxError: a broken PNG chunk).
        raise Refused(422, "Broken picture", f"the picture cannot be decoded: {error}") from None


def parse_passes(text: str | None) -> int:
    if text is None:
        return 1
    if text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_PASSES:
        return int(text)
    raise Refused(400, "Bad header", f"{PASSES_HEADER} must be a whole number from 1 to {MAX_PASSES}")


def read_lines(picture: Image.Image) -> list[dict[str, Any]]:
    """Return the lines from top to bottom. `box` has four corners in pixels, clockwise."""
    with MODEL_LOCK:
        found = MODEL(picture)
    if not found.txts:
        return []
    return [
        {
            "text": text,
            "confidence": round(float(score), 4),
            "box": [[round(float(x)), round(float(y))] for x, y in box],
        }
        for box, text, score in zip(found.boxes, found.txts, found.scores, strict=True)
    ]


def recognise(data: bytes, passes: int = 1, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Return the result for one picture. Times are in milliseconds, `model` is the mean of all passes."""
    started = time.perf_counter()
    picture = decode(data)
    decoded = time.perf_counter()
    made = 0
    lines: list[dict[str, Any]] = []
    while made < passes and not (made and stop()):
        lines = read_lines(picture)
        made += 1
    finished = time.perf_counter()
    return {
        "text": "\n".join(line["text"] for line in lines),
        "lines": lines,
        "image": {"width": picture.width, "height": picture.height},
        "milliseconds": {
            "decode": round((decoded - started) * 1000, 1),
            "model": round((finished - decoded) * 1000 / made, 1),
        },
        "passes": made,
        "worker": {"instance": os.environ.get("INSTANCE_ID", ""), "pid": os.getpid()},
    }


def read_body(chunks: Iterable[bytes]) -> bytes:
    """Read a body and stop at the limit. Raises `Refused` for a larger body."""
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > MAX_BODY:
            raise Refused(413, "Body too large", f"a picture may have {MAX_BODY // 1024**2} MiB at most")
    return bytes(data)


def handler(request: SyncRequest) -> dict[str, Any]:
    """Read one picture. A plain function runs on a thread, so it does not block the worker."""
    passes = parse_passes(request.headers.get(PASSES_HEADER))
    data = read_body(request.stream())
    LOG.info("reading %d bytes in %d passes", len(data), passes)
    result = recognise(data, passes, stop=lambda: bool(request.cancelled))
    # `attempt` is above 1 if an earlier worker crashed on this request.
    return {**result, "delivery": request.attempt}


if __name__ == "__main__":
    serve(handler)
