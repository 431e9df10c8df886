"""Pictures: files, tensors, and the image tokenizer that turns them into codes and back."""
