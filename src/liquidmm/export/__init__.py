"""Other engines: checkpoint folders for vLLM and llama.cpp, and guided pictures on a vLLM."""
