"""Pages of package indexes: the Python simple API in HTML and JSON (PEP 503, 691) and npm's documents.

They are told to a sandbox with other addresses for the files, and remembered for what they say of each file:
where it is, and its digest.
"""

import base64
import binascii
import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote, unquote, urldefrag, urljoin, urlsplit

_ALGORITHMS = ("sha256", "sha512", "sha384")
"""Those that a file may be known by in the cache; weaker ones are as good as none."""
_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!~-]{0,254}")
_KEPT_ATTRIBUTES = ("data-requires-python", "data-yanked", "data-core-metadata", "data-dist-info-metadata")
_JSON = "application/vnd.pypi.simple.v1+json"


class BadPageError(Exception):
    """An index answered with something that is no page of an index."""


@dataclass(frozen=True)
class File:
    """A file of an index. digest: ``algorithm:hex``, empty when the index names none that is good enough."""

    url: str
    digest: str


@dataclass(frozen=True)
class Page:
    """A page as a sandbox gets it, and the files on it by name."""

    body: bytes
    content_type: str
    files: dict[str, File]


def python_page(body: bytes, content_type: str, url: str, files_at: str) -> Page:
    """A project's page of the simple API. Its files are told to be below `files_at`. Raises BadPageError."""
    if "json" in content_type:
        return _python_json(body, url, files_at)
    parser = _Anchors()
    parser.feed(body.decode("utf-8", "replace"))
    parser.close()
    files: dict[str, File] = {}
    lines = []
    for attributes in parser.found:
        target, fragment = urldefrag(urljoin(url, attributes.get("href", "")))
        name = unquote(urlsplit(target).path.rpartition("/")[2])
        if not _FILE.fullmatch(name):
            continue
        algorithm, _, value = fragment.partition("=")
        files[name] = File(target, _digest({algorithm: value}))
        lines.append(_anchor(f"{files_at}/{quote(name)}", fragment, name, attributes))
    head = '<!DOCTYPE html><html><head><meta name="pypi:repository-version" content="1.0"></head><body>\n'
    return Page((head + "\n".join(lines) + "\n</body></html>\n").encode(), "text/html; charset=utf-8", files)


def _anchor(address: str, fragment: str, name: str, attributes: dict[str, str]) -> str:
    kept = "".join(
        f' {key}="{html.escape(attributes[key])}"' for key in _KEPT_ATTRIBUTES if key in attributes
    )
    target = html.escape(f"{address}#{fragment}" if fragment else address)
    return f'<a href="{target}"{kept}>{html.escape(name)}</a><br>'


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[dict[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found.append({name: value or "" for name, value in attrs})


def _python_json(body: bytes, url: str, files_at: str) -> Page:
    page = _parsed(body)
    files: dict[str, File] = {}
    shown = []
    for entry in _objects(page.get("files")):
        name, target = entry.get("filename"), entry.get("url")
        if not isinstance(name, str) or not isinstance(target, str) or not _FILE.fullmatch(name):
            continue
        files[name] = File(urljoin(url, target), _digest(entry.get("hashes")))
        shown.append({**entry, "url": f"{files_at}/{quote(name)}"})
    return Page(json.dumps({**page, "files": shown}).encode(), _JSON, files)


def npm_page(body: bytes, content_type: str, url: str, files_at: str) -> Page:
    """A package's document of an npm registry. Raises BadPageError."""
    page = _parsed(body)
    files: dict[str, File] = {}
    versions = page.get("versions")
    for version in _objects(list(versions.values()) if isinstance(versions, dict) else None):
        dist = version.get("dist")
        target = dist.get("tarball") if isinstance(dist, dict) else None
        if not isinstance(dist, dict) or not isinstance(target, str):
            continue
        name = unquote(urlsplit(target).path.rpartition("/")[2])
        if _FILE.fullmatch(name):
            files[name] = File(urljoin(url, target), _integrity(dist.get("integrity")))
            dist["tarball"] = f"{files_at}/{quote(name)}"
    return Page(json.dumps(page).encode(), content_type or "application/json", files)


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        page = json.loads(body)
    except (ValueError, RecursionError):
        raise BadPageError("the index did not answer with JSON") from None
    if not isinstance(page, dict):
        raise BadPageError("the index did not answer with an object")
    return page


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    yield from (entry for entry in (value if isinstance(value, list) else ()) if isinstance(entry, dict))


def _digest(hashes: Any) -> str:
    for algorithm in _ALGORITHMS if isinstance(hashes, dict) else ():
        value = hashes.get(algorithm)
        if isinstance(value, str) and re.fullmatch(rf"[0-9a-fA-F]{{{_LENGTHS[algorithm]}}}", value):
            return f"{algorithm}:{value.lower()}"
    return ""


def _integrity(text: Any) -> str:
    """The digest in npm's form, ``sha512-<base64>``, of which there may be several."""
    hashes: dict[str, str] = {}
    for part in text.split() if isinstance(text, str) else ():
        algorithm, _, value = part.partition("-")
        try:
            hashes[algorithm] = base64.b64decode(value, validate=True).hex()
        except (binascii.Error, ValueError):
            continue
    return _digest(hashes)
