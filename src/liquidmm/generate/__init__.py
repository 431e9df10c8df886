"""Generation: from a prompt to pictures, text or both.

Contract, from what users hold down to single numbers: `load` opens a `liquid`; `jobs` says in words
what to do, `writer` puts answers into words and pictures. `engine` answers requests of ids with a
`scheduler`, which keeps a `batch` of lanes running; a `plan` is one pass of it. A `decoder` is the
language model over a cache, `sampling` turns its scores into ids.
"""
