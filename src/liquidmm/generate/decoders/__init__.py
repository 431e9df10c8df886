"""Language models that read ids and write to a cache: one contract, three ways to run it.

`decoder` is the contract, `family` runs any family with transformers' code, `packed` some families
by hand with PyTorch, for accelerators, and `native` the same ones in C, for CPUs. `choice` chooses.
"""
