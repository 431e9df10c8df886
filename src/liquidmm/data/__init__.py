"""From shards of image codes to packed training sequences.

`readers` turn the datasets people have into `records`. `encode` makes each record a `Sample` and
writes them with `shard_writer`; `shards` reads them by index. `examples` lays a sample out as token
ids and labels, `mixture` decides which sample comes next, `packing` fills sequences of fixed
length, and `stream` is the endless stream that training reads.
"""
