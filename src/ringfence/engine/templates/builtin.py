"""The templates that are always there: what is in them and what their kernels import beforehand."""

from dataclasses import dataclass, field
from importlib import resources

from ringfence.core.errors import TemplateError

# Every process of a sandbox gets these. pip's settings are those of E2B's own template; the rest keeps
# programs from asking questions or guessing an encoding.
_ENV = {
    "LANG": "C.UTF-8",
    "PIP_DEFAULT_TIMEOUT": "100",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_CACHE_DIR": "1",
    "PIP_ROOT_USER_ACTION": "ignore",
    "DEBIAN_FRONTEND": "noninteractive",
}

# Measured with the pinned versions (import time / private memory): pandas with numpy 0.35 s / 30 MB, pyplot
# 0.5 s / 21 MB, e2b_charts 0.1 s / 6 MB.
_CHARTS_AND_FRAMES = ("numpy", "pandas", "matplotlib.pyplot", "PIL.Image", "e2b_charts")

# scipy.stats 0.9 s / 37 MB, these parts of scikit-learn 0.2 s / 15 MB, seaborn 4 MB, plotly.express 0.2 s /
# 14 MB, requests 3 MB, openpyxl 5 MB. Left to be imported on demand, because few sessions use them and each
# costs every template start and every fork: statsmodels 0.6 s / 28 MB, sympy 0.5 s / 31 MB, spacy 0.7 s /
# 24 MB, nltk 18 MB, numba 17 MB, bokeh 0.5 s / 16 MB.
_DATA_SCIENCE = (
    *_CHARTS_AND_FRAMES,
    "orjson",
    "requests",
    "openpyxl",
    "scipy.stats",
    "sklearn.linear_model",
    "sklearn.ensemble",
    "sklearn.model_selection",
    "sklearn.preprocessing",
    "sklearn.metrics",
    "seaborn",
    "plotly.express",
)


@dataclass(frozen=True)
class Definition:
    """A template as it is written down, before it is built.

    requirements: name of the pinned requirements file in this package; every line of it has hashes.
    preload: modules a kernel zygote imports once; a kernel forked from it has them at no cost.
    env: variables of every process in a sandbox of this template.
    """

    name: str
    summary: str
    requirements: str
    preload: tuple[str, ...]
    env: dict[str, str] = field(default_factory=lambda: dict(_ENV))

    def requirements_text(self) -> str:
        """The requirements file's text, in pip's format, with exact versions and hashes."""
        package = resources.files("ringfence.engine.templates")
        return (package / "requirements" / self.requirements).read_text(encoding="utf-8")


_DEFINITIONS = (
    Definition(
        name="base",
        summary="The host's shell tools, Python with pandas and matplotlib; only IPython is preloaded.",
        requirements="code-interpreter-mini.txt",
        preload=("IPython",),
    ),
    Definition(
        name="code-interpreter-mini",
        summary="numpy, pandas, matplotlib and Pillow, imported beforehand; small and quick to build.",
        requirements="code-interpreter-mini.txt",
        preload=("IPython", *_CHARTS_AND_FRAMES),
    ),
    Definition(
        name="code-interpreter-v1",
        summary="E2B's data-science packages at E2B's versions; the usual ones are imported beforehand.",
        requirements="code-interpreter-v1.txt",
        preload=("IPython", *_DATA_SCIENCE),
    ),
)

BUILTIN: dict[str, Definition] = {definition.name: definition for definition in _DEFINITIONS}
"""The built-in definitions by name."""

DEFAULT_TEMPLATE = "code-interpreter-v1"
"""What a request that names no template gets from the code-interpreter SDK."""


def definition_of(name: str) -> Definition:
    """The built-in definition called `name`. Raises `TemplateError` when there is none."""
    try:
        return BUILTIN[name]
    except KeyError:
        known = ", ".join(sorted(BUILTIN))
        raise TemplateError(f"unknown template {name!r}; built-in templates are: {known}") from None
