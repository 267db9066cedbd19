"""A primary and its replicas as local processes: real PostgreSQL, no Docker and nothing installed by hand.

`EmbeddedCluster` in `cluster` is the way in. `decide`, `config` and `control` are pure; `node` and `process` act on one
server; `build` and `follow` make, clone and rewind data folders.
"""
