"""What runs inside a sandbox: PID 1, which serves E2B's envd and code interpreter. It knows nothing of the
host.

The guest is forked, not started: after the fork its own files are out of reach, because the root is the
sandbox's. So every module imports at its top all that it will ever need.
"""
