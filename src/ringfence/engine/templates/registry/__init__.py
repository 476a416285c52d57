"""Images: pulled from OCI registries or read from disk, and unpacked where they can do no harm."""
