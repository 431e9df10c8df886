"""The built-in dataset of icons, scenes and text, its exact benchmark and the judges."""
