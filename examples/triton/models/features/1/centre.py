"""From drawings to features, for training and for serving."""

import numpy as np

SIZE = 12
NOISE = 100


def centred(pictures):
    """Return (n, 144) features: the drawing moved to the middle, without noise, from 0 to 1."""
    found = np.where(pictures < NOISE, 0, pictures).astype(np.float32)
    moved = np.stack([_moved(each) for each in found]) if len(found) else found
    brightest = moved.reshape(len(moved), -1).max(1, initial=1.0)
    return moved.reshape(len(moved), SIZE * SIZE) / brightest[:, None]


def _moved(picture):
    rows, columns = np.nonzero(picture)
    if len(rows) == 0:
        return picture
    middle = (SIZE - 1) / 2
    down, right = (round(middle - (each.min() + each.max()) / 2) for each in (rows, columns))
    return np.roll(picture, (down, right), (0, 1))
