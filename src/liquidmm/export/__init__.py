"""Export of checkpoints to vLLM folders and GGUF files, and image generation with vLLM."""
