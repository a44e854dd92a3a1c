"""Reads the text in a picture: PNG or JPEG in, JSON out.

    nvcf deploy examples/ocr/function.py --name ocr
    nvcf invoke ocr --data @picture.png

The models (detector, direction classifier, recogniser) come inside the rapidocr wheel and run on the CPU.
A function file is loaded by itself, so everything it needs is in here.
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
# Beyond this the model's fixed input sizes leave nothing of the short side.
MAX_ASPECT = 25
MAX_PASSES = 1000
# How often to read the same picture: a way to measure, and to keep a worker busy.
PASSES_HEADER = "x-ocr-passes"

# `decode` has a limit of its own, which is lower; Pillow's would only warn.
Image.MAX_IMAGE_PIXELS = None

LOG = logging.getLogger("ocr")


class Refused(FunctionError):
    """The caller's mistake: answered with this status and a problem document that holds the detail."""

    def __init__(self, status: int, title: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.title = title


def load() -> Callable[[Any], Any]:
    """Loads the models and reads one blank page, so that the first caller does not pay for it."""
    # ONNX Runtime's wheels send usage data to their maker unless this is set before they are imported.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    from rapidocr import RapidOCR

    # An instance shares the machine with its neighbours: one thread each, more instances for more throughput.
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
        # Pillow's word for a file that is broken behind a good beginning (SyntaxError: a broken PNG chunk).
        raise Refused(422, "Broken picture", f"the picture cannot be decoded: {error}") from None


def parse_passes(text: str | None) -> int:
    if text is None:
        return 1
    if text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_PASSES:
        return int(text)
    raise Refused(400, "Bad header", f"{PASSES_HEADER} must be a whole number from 1 to {MAX_PASSES}")


def read_lines(picture: Image.Image) -> list[dict[str, Any]]:
    """Lines from top to bottom; `box`: four corners in pixels, clockwise from where the line starts."""
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
    """The whole answer for one picture; times in milliseconds, `model` is the mean of all passes made."""
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
    """Gives up at the limit instead of fetching all of a body that will be refused."""
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > MAX_BODY:
            raise Refused(413, "Body too large", f"a picture may have {MAX_BODY // 1024**2} MiB at most")
    return bytes(data)


def handler(request: SyncRequest) -> dict[str, Any]:
    """A plain function: it runs on a thread, so the worker stays free for its other duties."""
    passes = parse_passes(request.headers.get(PASSES_HEADER))
    data = read_body(request.stream())
    LOG.info("reading %d bytes in %d passes", len(data), passes)
    answer = recognise(data, passes, stop=lambda: bool(request.cancelled))
    # More than 1 when an earlier worker died over this request.
    return {**answer, "delivery": request.attempt}


if __name__ == "__main__":
    serve(handler)
