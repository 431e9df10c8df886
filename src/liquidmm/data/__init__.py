"""The data pipeline from datasets to packed training sequences.

`readers` turn existing datasets into `records`. `encode` converts each record to a `Sample` and
writes them with `shard_writer`; `shards` reads them by index. `examples` converts a sample to token
ids and labels, `mixture` decides which sample comes next, `packing` fills sequences of fixed
length, and `stream` is the endless stream that training reads.
"""
