"""The one colour of a small picture, by name.

Contract: a pure function of the pixels; it says nothing rather than something doubtful.
"""

from collections import Counter

import numpy as np
from PIL import Image

# Upper ends in degrees; the unnamed ranges between red, orange and yellow are called differently
# by different people.
_HUES = (
    (14, "red"),
    (17, ""),
    (35, "orange"),
    (44, ""),
    (66, "yellow"),
    (70, ""),
    (165, "green"),
    (185, ""),
    (250, "blue"),
    (260, ""),
    (292, "purple"),
    (310, ""),
    (340, "pink"),
    (361, "red"),
)
_COLOUR_SHARE = 0.6


def dominant_color(sprite: Image.Image) -> str:
    """Name the one colour of a picture on white.

    Args:
        sprite: RGB.

    Returns:
        red, orange, yellow, green, blue, purple, pink or brown where most of its vivid part has
        it, gray where next to nothing is vivid, and "" where it has no one colour.
    """
    pixels = np.asarray(sprite, dtype=np.float32).reshape(-1, 3)
    pixels = pixels[pixels.min(axis=1) < 225]
    spread = pixels.max(axis=1) - pixels.min(axis=1)
    vivid = pixels[spread > 0.3 * pixels.max(axis=1)]
    if not len(pixels) or 0.1 * len(pixels) < len(vivid) < 0.5 * len(pixels):
        return ""
    if len(vivid) < 0.5 * len(pixels):
        return "gray" if (abs(pixels.mean(axis=1) - 150) < 60).mean() > _COLOUR_SHARE else ""
    found = Counter(_colour_of(*pixel) for pixel in vivid.tolist())
    colour, count = max(found.items(), key=lambda item: (item[1], item[0]))
    return colour if count >= _COLOUR_SHARE * len(vivid) else ""


def _colour_of(red: float, green: float, blue: float) -> str:
    high, low = max(red, green, blue), min(red, green, blue)
    spread = high - low
    if high == red:
        hue = 60 * (green - blue) / spread % 360
    elif high == green:
        hue = 60 * (blue - red) / spread + 120
    else:
        hue = 60 * (red - green) / spread + 240
    if 10 <= hue < 40 and high < 205:
        return "brown"
    if high > 200 and ((low > 85 and (hue < 12 or hue >= 342)) or (low > 140 and hue < 40)):
        return "pink"
    return next(name for limit, name in _HUES if hue < limit)
