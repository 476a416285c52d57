"""The package mirror: what `pip`, `uv` and `npm` inside sandboxes install from.

A sandbox asks it by HTTP on its own loopback; it asks the indexes that this machine is configured to use,
with this machine's credentials. Files are kept by their digest, in a cache that the engine alone writes to.

- `pages`: what an index says about a project, and how that is told to a sandbox;
- `fetch`: requests to the indexes;
- `blobs`: the cache, as seen from here;
- `service`: the mirror itself; `exchange`: its HTTP, and what each sandbox may hold of it.
"""
