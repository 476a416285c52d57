"""Volumes: directories that outlive sandboxes, that several share, and that can be read without one.

- `images`: the file that gives a volume its hard limit;
- `tree`: what can be done with the files of a volume whose contents are hostile;
- `agent`: the process without power over the host that does it, one for each volume;
- `client`: the engine's end of the channel to an agent;
- `manager`: all volumes of an engine.
"""
