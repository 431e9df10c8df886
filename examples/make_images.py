"""Draw 60 simple images with captions, a stand-in for your own: python examples/make_images.py OUT.

Ten shapes in six colors on white, 128 x 128 pixels, with a `.txt` caption next to each `.png`.
"""

import math
import sys
from pathlib import Path

from PIL import Image, ImageDraw

COLORS = {
    "red": "#dd2e44",
    "orange": "#f4900c",
    "yellow": "#ffcc4d",
    "green": "#77b255",
    "blue": "#55acee",
    "purple": "#aa8dd8",
}
SIDE, SCALE = 128, 4


def polygon(corners: int, inner: float = 1.0, turn: float = 0.0) -> list[tuple[float, float]]:
    """Return the corners of a regular polygon, or of a star where ``inner`` is below 1."""
    center, radius, points = SIDE * SCALE / 2, SIDE * SCALE * 0.42, []
    for index in range(2 * corners):
        angle = math.pi * index / corners - math.pi / 2 + turn
        length = radius * (inner if index % 2 else 1.0)
        if inner < 1.0 or index % 2 == 0:
            points.append((center + length * math.cos(angle), center + length * math.sin(angle)))
    return points


def paint(shape: str, color: str) -> Image.Image:
    """Draw one shape, antialiased by drawing it four times as large."""
    image = Image.new("RGB", (SIDE * SCALE, SIDE * SCALE), "white")
    pen, full = ImageDraw.Draw(image), SIDE * SCALE
    box = (full * 0.1, full * 0.1, full * 0.9, full * 0.9)
    if shape == "circle":
        pen.ellipse(box, fill=color)
    elif shape == "ring":
        pen.ellipse(box, outline=color, width=full // 8)
    elif shape == "square":
        pen.rectangle(box, fill=color)
    elif shape == "half moon":
        pen.ellipse(box, fill=color)
        pen.ellipse((full * 0.35, 0.0, full * 1.15, full * 0.8), fill="white")
    elif shape == "cross":
        pen.rectangle((full * 0.38, full * 0.1, full * 0.62, full * 0.9), fill=color)
        pen.rectangle((full * 0.1, full * 0.38, full * 0.9, full * 0.62), fill=color)
    else:
        corners = {"triangle": 3, "diamond": 4, "hexagon": 6, "star": 5, "sun": 8}[shape]
        pen.polygon(polygon(corners, {"star": 0.4, "sun": 0.7}.get(shape, 1.0)), fill=color)
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def main(out: Path) -> None:
    """Write the images and their captions."""
    shapes = ("circle", "ring", "square", "cross", "triangle", "diamond", "hexagon", "star", "sun")
    out.mkdir(parents=True, exist_ok=True)
    for shape in (*shapes, "half moon"):
        for color, value in COLORS.items():
            name = f"{color}-{shape.replace(' ', '-')}"
            paint(shape, value).save(out / f"{name}.png")
            article = "an" if color == "orange" else "a"
            (out / f"{name}.txt").write_text(f"{article} {color} {shape}\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
