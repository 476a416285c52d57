"""What the server and the agents agree on beyond the protocol."""

META_KEY = "io.ringfence/result"
"""Where the machine-readable record of every result is, in `_meta`; never shown to a model."""
