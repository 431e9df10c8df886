"""From files on disk to training rows: records, code shards, examples, packed rows.

The stages, one file each: `sources` reads `records`, published `conversations` among them; `encode`
turns their pictures into codes and writes a `shard_file` each into a `shard_folder`, whose rows
`shards` gives by number; `render` lays a row of a shard out as an
example; `packing` fills rows of fixed length; `mixture` draws from several shard folders by weight.
`icons`, `scenes` and `text` build records.
"""
