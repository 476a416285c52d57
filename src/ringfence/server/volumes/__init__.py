"""Volumes over E2B's API: their names and owners, and their contents."""
