"""The same server over streamable HTTP: who may call it, from where, and how large files pass beside it."""
