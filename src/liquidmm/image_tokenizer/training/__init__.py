"""Training an image tokenizer: its own loop, run file, losses and checkpoints."""
