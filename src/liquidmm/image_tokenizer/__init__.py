"""The image tokenizer: images to codes and back."""
