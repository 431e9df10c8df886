"""The benchmark of the built-in dataset: generated icons, captions and questions about scenes."""
