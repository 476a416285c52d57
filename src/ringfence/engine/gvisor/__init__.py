"""The harder tier: a sandbox whose kernel is gVisor, a program of its own, instead of the host's.

``runsc`` runs inside what a sandbox of the process tier has: its own PID, mount, network, IPC, UTS and cgroup
namespaces, private host ids, cgroup limits, the size-limited writable layer. So nothing of it is host root,
its end is that of its PID namespace, and who breaks out of gVisor is in an ordinary sandbox's place.
"""
