"""From files on disk to training rows: records, code shards, examples, packed rows.

The stages, one file each: `sources` reads `records`, published `conversations` among them; `encode`
turns their pictures into codes and writes each part as a `shard_file` into a `shard_folder`, whose
rows `shards` gives by number; `render` lays a row out as an example; `draws` says which one comes
next; `packing` fills rows of fixed length; `mixture` is the stream that a training takes. `icons`,
`scenes` and `text` build records.
"""
