"""Templates from images: a registry on loopback, OCI layouts, archives; and what is refused."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from e2b import BuildException, Template
from e2b_code_interpreter import Sandbox

from tests import images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import RunningServer


@pytest.fixture(scope="module")
def image_server(
    starting: Callable[..., RunningServer], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A server that may use registries on loopback and the images in its ``images`` directory."""
    directory = tmp_path_factory.mktemp("images")
    images.shell_image().write_layout(directory / "layout", "one")
    images.shell_image().write_archive(directory / "saved.tar")
    server = starting(
        tmp_path_factory.mktemp("data"),
        templates="base",
        RINGFENCE_IMAGE_REGISTRIES="127.0.0.1",
        RINGFENCE_IMAGE_DIR=str(directory),
    )
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with images.running_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


def new_name() -> str:
    return f"i-{uuid.uuid4().hex[:12]}"


def build(server: RunningServer, template: Any, name: str) -> list[str]:
    lines: list[str] = []
    Template.build(
        template,
        name,
        api_key=server.key,
        api_url=server.url,
        on_build_logs=lambda entry: lines.append(entry.message),
    )
    return lines


@pytest.mark.parametrize("by_index", [False, True])
def test_an_image_of_a_registry(
    image_server: RunningServer, registry: Any, tmp_path: Path, by_index: bool
) -> None:
    (tmp_path / "file").write_text("copied")
    name = new_name()
    reference = registry.push(images.shell_image(), f"team/{name}", by_index=by_index)
    template = (
        Template(file_context_path=tmp_path)
        .from_image(reference)
        .run_cmd("test ! -e /etc/gone && echo $GREETING > ~/greeting")
        .copy("file", "/data/")
        .set_user("ann")
    )
    build(image_server, template, name)
    with Sandbox.create(name, **image_server.options) as sandbox:
        found = sandbox.commands.run(
            "whoami; cat /home/user/greeting /data/file; ls /opt/a; stat -c '%a %U' /opt/a/y"
        )
        assert found.stdout == "ann\nhello there\ncopiedy\n755 root\n"
        with pytest.raises(Exception, match="this template runs commands only"):
            sandbox.run_code("1")
        assert sandbox.files.read("/data/file") == "copied"


def test_an_image_is_unpacked_once(image_server: RunningServer, registry: Any) -> None:
    image = images.shell_image()
    image.config["Env"] = ["ONCE=1"]
    reference = registry.push(image, "team/once")
    first = build(image_server, Template().from_image(reference).run_cmd("true"), new_name())
    second = build(image_server, Template().from_image(reference).run_cmd("true"), new_name())
    assert any("layer 1/" in line for line in first)
    assert not any("layer 1/" in line for line in second)
    assert any("CACHED" in line for line in second)


def test_layers_compressed_with_zstd(image_server: RunningServer, registry: Any) -> None:
    image = images.shell_image()
    image.layers = [images.with_zstd(image.layers[0]), image.layers[1], images.with_zstd(image.layers[2])]
    name = new_name()
    build(image_server, Template().from_image(registry.push(image, "team/zstd")).run_cmd("true"), name)
    with Sandbox.create(name, **image_server.options) as sandbox:
        assert (
            sandbox.commands.run("ls /opt/a; test ! -e /etc/gone && stat -c %a /opt/a/y").stdout == "y\n755\n"
        )


def test_a_layer_that_only_looks_like_zstd(image_server: RunningServer, registry: Any) -> None:
    broken = images.Image([images.shell_layer(), images.with_zstd(images.shell_layer())[:4] + b"?" * 5000])
    images.uncompressed, kept = (lambda part: part), images.uncompressed
    try:
        reference = registry.push(broken, "team/broken")
    finally:
        images.uncompressed = kept
    with pytest.raises(BuildException, match="cannot be unpacked"):
        build(image_server, Template().from_image(reference), new_name())


def test_a_dockerfile(image_server: RunningServer, registry: Any, tmp_path: Path) -> None:
    reference = registry.push(images.shell_image(), "team/docker")
    (tmp_path / "app.txt").write_text("app")
    dockerfile = f"FROM {reference}\nENV WHO=docker\nWORKDIR /app\nCOPY app.txt .\nRUN echo $WHO >> app.txt\n"
    name = new_name()
    build(image_server, Template(file_context_path=tmp_path).from_dockerfile(dockerfile), name)
    with Sandbox.create(name, **image_server.options) as sandbox:
        assert sandbox.commands.run("cat /app/app.txt; stat -c %U /app/app.txt").stdout == "appdocker\nroot\n"


@pytest.mark.parametrize("image", ["oci:layout:one", "docker-archive:saved.tar"])
def test_an_image_of_the_operators(image_server: RunningServer, image: str) -> None:
    name = new_name()
    build(image_server, Template().from_image(image).run_cmd("echo $GREETING > ~/x"), name)
    with Sandbox.create(name, **image_server.options) as sandbox:
        assert sandbox.commands.run("cat ~/x").stdout == "hello there\n"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("oci:../../etc", "no image"),
        ("oci:layout:two", "has no image"),
        ("docker-archive:/etc/passwd", "no image"),
        ("10.1.2.3/team/x", "not pulled from 10.1.2.3: it is a private network"),
        ("169.254.169.254/latest/x", "link-local"),
        ("localhost:1/x", "RINGFENCE_IMAGE_REGISTRIES"),
        ("no image name", "not the name of an image"),
        ("127.0.0.1:1/x", "cannot be used"),
    ],
)
def test_what_is_refused(image_server: RunningServer, image: str, message: str) -> None:
    with pytest.raises(BuildException, match=message):
        build(image_server, Template().from_image(image), new_name())


def test_an_image_that_is_not_there(image_server: RunningServer, registry: Any) -> None:
    with pytest.raises(BuildException, match="there is no image"):
        build(image_server, Template().from_image(f"{registry.host}/no/such"), new_name())


def test_a_hostile_layer_stays_inside(image_server: RunningServer, registry: Any, tmp_path: Path) -> None:
    marker = f"/tmp/ringfence-{uuid.uuid4().hex}"
    layer = images.layer(
        ("../../../../.." + marker, b"out", 0o644),
        ("escape", "/tmp", 0o777),
        (f"escape/{Path(marker).name}-2", b"out", 0o644),
        ("up", "../../../../../../..", 0o777),
        (f"up{marker}-3", b"out", 0o644),
    )
    image = images.Image([images.shell_layer(), layer])
    name = new_name()
    build(image_server, Template().from_image(registry.push(image, "team/hostile")), name)
    assert not list(Path("/tmp").glob(f"{Path(marker).name}*"))
    with Sandbox.create(name, **image_server.options) as sandbox:
        assert sandbox.commands.run("ls /tmp").stdout.count("ringfence-") == 3


def test_a_layer_that_hides_what_is_no_file_is_refused(image_server: RunningServer, registry: Any) -> None:
    image = images.Image([images.shell_layer(), images.layer(("etc/.wh...", b"", 0o644))])
    reference = registry.push(image, "team/hiding")
    with pytest.raises(BuildException, match="which is no file's name"):
        build(image_server, Template().from_image(reference), new_name())
