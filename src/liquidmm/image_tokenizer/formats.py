"""File formats of images, by suffix; importing this module does not import torch."""

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}
)
"""Suffixes of image files that can be read, in lower case."""

UNSUPPORTED_SUFFIXES = frozenset({".heic", ".heif", ".jxl", ".svg", ".psd", ".raw", ".dng"})
"""Suffixes of image files that are rejected, in lower case."""
