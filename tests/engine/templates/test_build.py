"""Whole templates, from definition to layers."""

import os
import re
from pathlib import Path

import pytest

from ringfence.core.errors import TemplateError
from ringfence.engine.settings import default_cache_dir
from ringfence.engine.templates import BUILTIN, DEFAULT_TEMPLATE, definition_of, ensure_template


def test_the_names_that_are_always_there() -> None:
    assert {"base", "code-interpreter-v1", "code-interpreter-mini"} <= BUILTIN.keys()
    assert DEFAULT_TEMPLATE in BUILTIN


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match=r"unknown template 'nope'.*base"):
        ensure_template("nope", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_every_requirement_is_pinned_and_hashed(name: str) -> None:
    text = definition_of(name).requirements_text()
    requirements = re.split(r"\n(?=[A-Za-z])", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    assert len(requirements) > 20
    for requirement in requirements:
        assert re.match(r"[A-Za-z0-9._-]+(\[\w+\])?==[^ ]+ ", requirement), requirement
        assert "--hash=sha256:" in requirement, requirement


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_the_top_level_list_is_in_the_lock(name: str) -> None:
    definition = definition_of(name)
    package = Path(__import__("ringfence.engine.templates").engine.templates.__file__).parent
    wanted = (package / "requirements" / definition.requirements).with_suffix(".in").read_text().splitlines()
    locked = definition.requirements_text()
    for requirement in wanted:
        if not requirement.startswith("#"):
            assert f"\n{requirement.replace('_', '-')} " in locked, requirement


def test_a_template_has_all_that_a_sandbox_needs() -> None:
    said: list[str] = []
    template = ensure_template("code-interpreter-mini", default_cache_dir(), said.append)

    assert re.fullmatch(r"[0-9a-f]{20}", template.template_id)
    assert template.layers[0].target == "/"
    assert {"/usr", "/usr/local"} <= {layer.target for layer in template.layers}
    for layer in template.layers:
        assert all(lower.is_dir() for lower in layer.lowers), layer
    assert {"pandas", "numpy", "matplotlib", "ipython", "pip"} <= template.packages.keys()
    assert template.python_version.count(".") == 2
    local = template.layers[-1].lowers[0]
    assert os.path.lexists(local / "bin" / "python3") and (local / "bin" / "pip").is_file()
    for module in template.preload:
        name = module.split(".")[0]
        packages = next(local.glob("lib/python3.*/site-packages"))
        assert (packages / name).is_dir() or (packages / f"{name}.py").exists(), name

    said.clear()
    assert ensure_template("code-interpreter-mini", default_cache_dir(), said.append) == template
    assert [line for line in said if not line.startswith("JavaScript cells")] == []  # without npm


def test_templates_of_the_same_packages_share_them() -> None:
    base = ensure_template("base", default_cache_dir())
    mini = ensure_template("code-interpreter-mini", default_cache_dir())

    assert base.template_id != mini.template_id
    assert base.layers[-1] == mini.layers[-1]


def test_a_relative_cache_directory_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A half-built tree is handed to programs that run elsewhere."""
    (tmp_path / "cache").symlink_to(default_cache_dir())
    monkeypatch.chdir(tmp_path)

    template = ensure_template("code-interpreter-mini", Path("cache"))

    assert all(lower.is_absolute() for layer in template.layers for lower in layer.lowers)
