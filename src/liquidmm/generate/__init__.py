"""Inference: the `Liquid` API and the engine behind it.

`liquid` turns a `GenerationRequest` into tokens (`requests`), runs it on the `engine` and turns the
events back into text and images (`detokenize`). The engine's `scheduler` decides which requests
run, the `batch` keeps them in the KV cache of a backend (`backends`), and a `step` samples one
token for each.
"""
