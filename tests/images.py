"""Images put together by hand, and a registry on loopback to push them to."""

import contextlib
import gzip
import hashlib
import io
import json
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from ringfence.engine.templates.registry.manifest import architecture

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
_GZIP = b"\x1f\x8b"
BUSYBOX = Path("/bin/busybox")
Entry = tuple[str, "bytes | str | None", int]
"""A path; contents of a file, target of a link or None for a directory; mode."""


def layer(*entries: Entry) -> bytes:
    """A gzipped tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content, mode in entries:
            info = tarfile.TarInfo(path)
            info.mode = mode
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
                continue
            info.type = tarfile.DIRTYPE if content is None else tarfile.SYMTYPE
            info.linkname = content or ""
            archive.addfile(info)
    return gzip.compress(buffer.getvalue(), mtime=0)


def with_zstd(part: bytes) -> bytes:
    """The same layer, compressed with zstd, in two frames as parallel compressors make them."""
    zstandard = pytest.importorskip("zstandard")
    plain = gzip.decompress(part)
    compressor = zstandard.ZstdCompressor(level=3)
    half = len(plain) // 2
    return bytes(compressor.compress(plain[:half]) + compressor.compress(plain[half:]))


def uncompressed(part: bytes) -> bytes:
    """A layer's tar."""
    if part[:2] == _GZIP:
        return gzip.decompress(part)
    zstandard = pytest.importorskip("zstandard")
    with zstandard.ZstdDecompressor().stream_reader(part, read_across_frames=True) as reader:
        return bytes(reader.read())


def shell_layer() -> bytes:
    """A layer with a shell and the tools that copying files takes."""
    if not BUSYBOX.exists():
        pytest.skip("there is no /bin/busybox (Debian: busybox-static)")
    dynamic = b"ld-linux" in BUSYBOX.read_bytes()[:4096]
    if dynamic:
        pytest.skip("/bin/busybox is not static (Debian: busybox-static)")
    applets = (
        *("sh", "cat", "cp", "chown", "chmod", "dirname", "echo", "env", "find", "grep", "gunzip", "gzip"),
        *("id", "ls", "mkdir", "mv", "pwd", "rm", "sed", "sleep", "stat", "tar", "test", "touch", "true"),
        "whoami",
    )
    links: list[Entry] = [(f"bin/{name}", "busybox", 0o777) for name in applets]
    return layer(("bin", None, 0o755), ("bin/busybox", BUSYBOX.read_bytes(), 0o755), *links)


@dataclass
class Image:
    """Layers, the lowest first, and the configuration's ``config``."""

    layers: list[bytes]
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def config_blob(self) -> bytes:
        rootfs = {"type": "layers", "diff_ids": [digest(uncompressed(part)) for part in self.layers]}
        described = {"architecture": architecture(), "os": "linux", "config": self.config, "rootfs": rootfs}
        return json.dumps(described).encode()

    @property
    def manifest(self) -> bytes:
        kind = "application/vnd.oci.image"
        return json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": descriptor(f"{kind}.config.v1+json", self.config_blob),
                "layers": [
                    descriptor(f"{kind}.layer.v1.tar+{'gzip' if part[:2] == _GZIP else 'zstd'}", part)
                    for part in self.layers
                ],
            }
        ).encode()

    @property
    def other_manifest(self) -> bytes:
        """A manifest of something else, for another machine."""
        return self.manifest.replace(b'"schemaVersion": 2', b'"annotations": {}, "schemaVersion": 2')

    @property
    def index(self) -> bytes:
        """An index that names this image for this machine, after one for another."""
        other = descriptor(MANIFEST, self.other_manifest) | {
            "platform": {"os": "linux", "architecture": "s390x"}
        }
        mine = descriptor(MANIFEST, self.manifest) | {
            "platform": {"os": "linux", "architecture": architecture()}
        }
        return json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [other, mine]}).encode()

    def write_layout(self, directory: Path, tag: str) -> None:
        """Write an OCI layout with this image."""
        blobs = directory / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        for blob in (*self.layers, self.config_blob, self.manifest):
            (blobs / digest(blob).removeprefix("sha256:")).write_bytes(blob)
        entry = descriptor(MANIFEST, self.manifest)
        entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
        (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def write_archive(self, path: Path) -> None:
        """Write what ``docker save`` writes."""
        names = [f"{number}/layer.tar" for number in range(len(self.layers))]
        listed = json.dumps([{"Config": "config.json", "RepoTags": None, "Layers": names}]).encode()
        parts = [gzip.decompress(part) for part in self.layers]
        path.write_bytes(
            gzip.decompress(
                layer(
                    ("config.json", self.config_blob, 0o644),
                    *((name, part, 0o644) for name, part in zip(names, parts, strict=True)),
                    ("manifest.json", listed, 0o644),
                )
            )
        )


def digest(data: bytes) -> str:
    """The digest as registries write it."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def descriptor(kind: str, data: bytes) -> dict[str, Any]:
    """How a manifest names a blob."""
    return {"mediaType": kind, "digest": digest(data), "size": len(data)}


def shell_image() -> Image:
    """A tiny image with a shell, in two layers; the second hides a file of the first."""
    first = layer(("etc", None, 0o755), ("etc/gone", b"gone\n", 0o644), ("opt/a/x", b"x", 0o600))
    second = layer(
        ("etc/.wh.gone", b"", 0o644), ("opt/a/.wh..wh..opq", b"", 0o644), ("opt/a/y", b"y", 0o4755)
    )
    return Image([shell_layer(), first, second], {"Env": ["GREETING=hello there"]})


@dataclass
class Registry:
    """A running docker-registry. `host` has its port."""

    host: str
    process: "subprocess.Popen[bytes]"

    def push(self, image: Image, name: str, tag: str = "latest", *, by_index: bool = False) -> str:
        """Push `image`; its reference."""
        with httpx.Client(base_url=f"http://{self.host}/v2/{name}", trust_env=False) as client:
            for blob in (*image.layers, image.config_blob):
                place = client.post("/blobs/uploads/").headers["Location"]
                where = httpx.URL(place).copy_merge_params({"digest": digest(blob)})
                client.put(where, content=blob).raise_for_status()
            wanted = digest(image.manifest) if by_index else tag
            self._put(client, wanted, image.manifest, MANIFEST)
            if by_index:
                self._put(client, f"{tag}-other", image.other_manifest, MANIFEST)
                self._put(client, tag, image.index, INDEX)
        return f"{self.host}/{name}:{tag}"

    @staticmethod
    def _put(client: httpx.Client, wanted: str, manifest: bytes, kind: str) -> None:
        client.put(
            f"/manifests/{wanted}", content=manifest, headers={"Content-Type": kind}
        ).raise_for_status()


@contextlib.contextmanager
def running_registry(directory: Path) -> Iterator[Registry]:
    """A registry on a free loopback port; skips the test where there is none."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed (a Debian package)")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings = directory / "registry.yml"
    settings.write_text(
        f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n"
        f"storage: {{filesystem: {{rootdirectory: {directory / 'registry'}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    process = subprocess.Popen(
        [program, "serve", str(settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _await_answer(f"http://127.0.0.1:{port}/v2/", process)
        yield Registry(f"127.0.0.1:{port}", process)
    finally:
        process.terminate()
        process.wait(10)


def _await_answer(url: str, process: "subprocess.Popen[bytes]") -> None:
    while process.poll() is None:
        try:
            httpx.get(url, trust_env=False)
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"docker-registry ended with {process.returncode}")
