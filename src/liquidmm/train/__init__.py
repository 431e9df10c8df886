"""Training of the language model; independent of the generation engine."""
