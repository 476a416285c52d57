"""Descriptions of images come from anybody: they are read, or a TemplateError says that they cannot be."""

import contextlib
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence.core.errors import TemplateError
from ringfence.engine.templates.registry import manifest, reference

DIGEST = "sha256:" + "a" * 64
WORDS = [
    "manifests",
    "mediaType",
    "digest",
    "size",
    "platform",
    "os",
    "architecture",
    "config",
    "layers",
    "Env",
    "User",
]
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=9)
    | st.sampled_from([DIGEST, "linux", "A=b", "/x"])
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(st.sampled_from([*WORDS, "WorkingDir"]), TREES, max_size=6)


@settings(max_examples=500, deadline=None)
@given(DOCUMENTS)
def test_any_description_is_read_or_refused(document: dict[str, Any]) -> None:
    manifest.is_index(document)
    for read in (manifest.choose, manifest.parse_manifest):
        with contextlib.suppress(TemplateError):
            read(document)
    config = manifest.parse_config(document)
    assert all("=" not in name and name for name, _ in config.env)
    assert not config.workdir or config.workdir.startswith("/")


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=80)
    | st.integers(1, 200_000).map(lambda depth: b"[" * depth)
    | TREES.map(json.dumps).map(str.encode)
)
def test_any_bytes_are_an_object_or_refused(data: bytes) -> None:
    with contextlib.suppress(TemplateError):
        assert isinstance(manifest.parse_json(data), dict)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.from_regex(r"[a-z.:/@\[\]0-9A-Z_-]{1,50}", fullmatch=True))
def test_the_name_of_an_image_leads_to_no_other_host_or_path(text: str) -> None:
    with contextlib.suppress(TemplateError):
        url = reference.parse(text).url
        assert url.startswith(("https://", "http://localhost", "http://127.", "http://[::1]"))
        assert "@" not in url
        assert ".." not in url
