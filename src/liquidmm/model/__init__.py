"""The checkpoint folder: load and save checkpoints, expand a language model or create a new one."""
