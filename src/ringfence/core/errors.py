"""Every error Ringfence raises on purpose, sorted by what the caller should do about it.

::

    RingfenceError
    ├── ConfigurationError      fix a setting or an argument, then try again
    ├── UnsupportedHostError    the machine lacks something; the message names the remedy
    │   └── TierUnavailableError   a harder tier of isolation; install it, or ask for less
    ├── IsolationError          a layer of isolation that was asked for could not be put in force
    ├── LauncherError           the privileged helper died or answered nonsense; restart the engine
    ├── TemplateError           a template is unknown or could not be built
    ├── SandboxError            this sandbox is unusable; make a new one
    │   ├── SandboxNotFoundError
    │   ├── SandboxStartError
    │   └── KernelStateError   the state of its kernels cannot be copied now; the message says what to do
    ├── LimitError              a quota or ceiling would be passed; ask for less or wait
    ├── VolumeError             a volume cannot be had, or something in it is not as the request needs it
    └── BackendError            the configured backend does not answer or refuses the key
"""


class RingfenceError(Exception):
    """Base of all errors raised by Ringfence."""


class ConfigurationError(RingfenceError):
    """A setting or argument is wrong; the message says which, and what it may be."""


class UnsupportedHostError(RingfenceError):
    """The machine lacks a feature that is needed; the message names it and its remedy."""


class TierUnavailableError(UnsupportedHostError):
    """A tier of isolation was asked for that this machine cannot give; nothing was run with less."""


class IsolationError(RingfenceError):
    """A layer of isolation could not be put in force, so nothing was run."""


class LauncherError(RingfenceError):
    """The launcher process died or broke its protocol."""


class TemplateError(RingfenceError):
    """A template is unknown or could not be built."""


class SandboxError(RingfenceError):
    """A sandbox cannot be used."""


class SandboxNotFoundError(SandboxError):
    """There is no such sandbox (it never was, was killed, or its lease ended)."""


class SandboxStartError(SandboxError):
    """A sandbox could not be started; nothing of it is left."""


class KernelStateError(SandboxError):
    """The state of a sandbox's kernels cannot be copied; the sandbox itself is as it was."""


class LimitError(RingfenceError):
    """A quota or ceiling would be passed."""


class VolumeError(RingfenceError):
    """A volume cannot be made or used, or an entry of it is missing, in the way, or of the wrong kind.

    `kind`: ``missing``, ``exists``, ``invalid``, ``full``, ``denied``, ``busy``, ``unsupported``, ``broken``.
    """

    def __init__(self, message: str, kind: str = "broken") -> None:
        super().__init__(message)
        self.kind = kind


class BackendError(RingfenceError):
    """The configured backend does not answer, or refuses the credentials."""
