"""Read drawings with Triton's own client, through the gateway: `python call.py GATEWAY KEY FUNCTION`."""

from __future__ import annotations

import sys

import numpy as np
import tritonclient.http as client
from train import drawings


def main(gateway: str, key: str, function: str) -> None:
    """Send 16 drawings as one batch and print what was read."""
    pictures, digits = drawings(16, seed=3)
    image = client.InferInput("IMAGE", list(pictures.shape), "UINT8").set_data_from_numpy(pictures)
    headers = {"authorization": f"Bearer {key}", "function-id": function}
    with client.InferenceServerClient(gateway.removeprefix("http://")) as triton:
        found = triton.infer("read_digit", [image], headers=headers).as_numpy("LABEL").reshape(-1)
    print("drawn", *digits)
    print("read ", *found)
    print(f"{np.mean(found == digits):.0%} are right")


if __name__ == "__main__":
    main(*sys.argv[1:4])
