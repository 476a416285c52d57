"""Environment variables for a cell of a Jupyter kernel, by the kernel's own language: its protocol has none.

Values travel as string literals in which every character but letters and digits is an escape, so that none
can be anything else than text.
"""

from collections.abc import Callable, Mapping

Pair = tuple[str, str]


def around_cell(language: str, env: Mapping[str, str]) -> Pair:
    """Code to run silently before a cell, which sets `env`, and after it, which puts back what was there.

    Raises ValueError when there is no way to do so in this language.
    """
    if not env:
        return "", ""
    try:
        make = _BY_LANGUAGE[language]
    except KeyError:
        raise ValueError(
            f"environment variables for one cell cannot be set in {language or 'this language'}"
        ) from None
    return make(env)


def at_start(language: str, env: Mapping[str, str]) -> str:
    """Code that makes the process's environment known where programs of the language look for it, if any."""
    if language != "java":
        return ""
    return "".join(f"System.setProperty({_java(name)}, {_java(value)});\n" for name, value in env.items())


def _r_code(env: Mapping[str, str]) -> Pair:
    names = ", ".join(map(_r, env))
    values = ", ".join(map(_r, env.values()))
    before = (
        f"local({{ n <- c({names}); options(ringfence.env = Sys.getenv(n, unset = NA, names = TRUE)); "
        f"do.call(Sys.setenv, as.list(setNames(c({values}), n))) }})"
    )
    after = (
        'local({ o <- getOption("ringfence.env"); options(ringfence.env = NULL); '
        "Sys.unsetenv(names(o)[is.na(o)]); o <- o[!is.na(o)]; "
        "if (length(o)) do.call(Sys.setenv, as.list(o)) })"
    )
    return f"invisible({before})", f"invisible({after})"


def _java_code(env: Mapping[str, str]) -> Pair:
    before, after = [], []
    for name, value in env.items():
        key, kept = _java(name), _java(f"ringfence.before.{name}")
        before.append(
            f"{{ String o = System.getProperty({key}); if (o != null) System.setProperty({kept}, o); "
            f"System.setProperty({key}, {_java(value)}); }}"
        )
        after.append(
            f"{{ String o = System.clearProperty({kept}); "
            f"if (o != null) System.setProperty({key}, o); else System.clearProperty({key}); }}"
        )
    return "\n".join(before), "\n".join(after)


def _python_code(env: Mapping[str, str]) -> Pair:
    environ = "__import__('os').environ"
    before = (
        f"__import__('builtins')._ringfence_env = {{n: {environ}.get(n) for n in {list(env)!a}}}\n"
        f"{environ}.update({dict(env)!a})"
    )
    after = (
        f"[{environ}.pop(n, None) if v is None else {environ}.__setitem__(n, v) "
        "for n, v in __import__('builtins').__dict__.pop('_ringfence_env').items()]"
    )
    return before, after


def _r(text: str) -> str:
    return '"' + "".join(c if _plain(c) else f"\\U{ord(c):08x}" for c in text) + '"'


def _java(text: str) -> str:
    r"""Java reads ``\u`` escapes before it looks for the end of a literal, so ASCII needs octal ones."""
    return '"' + "".join(c if _plain(c) else _java_escape(c) for c in text) + '"'


def _java_escape(character: str) -> str:
    if ord(character) < 128:
        return f"\\{ord(character):03o}"
    data = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{data[i]:02x}{data[i + 1]:02x}" for i in range(0, len(data), 2))


def _plain(character: str) -> bool:
    return character.isascii() and character.isalnum()


_BY_LANGUAGE: dict[str, Callable[[Mapping[str, str]], Pair]] = {
    "r": _r_code,
    "java": _java_code,
    "python": _python_code,
}
