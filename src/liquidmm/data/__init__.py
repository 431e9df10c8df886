"""From files on disk to training rows: records, code shards, examples, packed rows.

The stages, one file each: `sources` reads `records`, published `conversations` among them; `encode`
turns their pictures into codes and writes `shards`; `render` lays a row of a shard out as an
example; `packing` fills rows of fixed length; `mixture` draws from several shard folders by weight.
`icons`, `scenes` and `text` build records.
"""
