"""Checkpoints for other engines: vLLM folders and GGUF files, and image generation with vLLM."""
