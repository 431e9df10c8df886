"""The built-in dataset (icons, scenes and text) and the benchmark on it."""
