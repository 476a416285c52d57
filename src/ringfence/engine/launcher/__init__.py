"""The launcher.

The only privileged process, and the parent of every sandbox. It holds no keys and speaks no HTTP.
"""
