"""Attacks on a sandbox from within: each tries one thing and says whether it was contained.

The modules of this package are sent into the sandbox as text (see `ringfence.engine.proof.program`), so they
import nothing but the standard library, each other, and the table of system calls.
"""
