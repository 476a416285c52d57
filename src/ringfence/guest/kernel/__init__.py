"""The program that runs in the template's Python: preload, nursery and the IPython kernel.

It is imported as the top-level package ``ringfence_kernel`` by an interpreter that knows nothing of
Ringfence, so nothing here may import ``ringfence``, and every module is imported before the first fork:
afterwards the process lives in a root where these files do not exist.
"""
