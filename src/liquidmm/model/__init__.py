"""A checkpoint folder and how one is made: processor, load and save, expansion, a base model."""
