"""The checkpoint folder: load, save, expand a language model, create one from scratch."""
