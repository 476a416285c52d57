"""``sudo`` inside a sandbox, where no program can gain privileges by being executed (no_new_privs).

The command ``/usr/bin/sudo`` (`client`, run by the template's Python) asks PID 1 over a Unix socket to start
the program as another user of the sandbox (`server`), with the caller's standard streams or a terminal of
its own, and an environment as sudo makes it (`policy`). As on E2B the user may do so without a password: the
sandbox's root has no power outside of it. Where there is only one id (an engine of an ordinary user) the
program runs with that id.
"""
