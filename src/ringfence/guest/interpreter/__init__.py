"""The code-interpreter API (E2B's port 49999) and the kernels behind it. Runs in the guest, in our own
Python.
"""
