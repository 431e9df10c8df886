"""Training of an image tokenizer."""
