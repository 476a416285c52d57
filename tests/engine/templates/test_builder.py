"""The builder on a real engine: contexts, refusals, and that nothing is left of a failed build."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ringfence.core.errors import TemplateError
from ringfence.engine.engine import Engine
from ringfence.engine.model import Limits, SandboxSpec, Template
from ringfence.engine.settings import EngineSettings
from ringfence.engine.templates.builder import instructions
from ringfence.engine.templates.builder.build import TemplateBuilder
from ringfence.engine.templates.builder.guest import Command, Guest
from ringfence.engine.templates.builder.spec import BuildError, BuildSpec, Context, Step
from ringfence.engine.templates.registry.images import ImageStore


class Index(dict[str, str]):
    """Layers by key, in memory."""

    def find(self, key: str) -> str | None:
        return self.get(key)

    def begin(self, snapshot: str) -> None:
        self[snapshot] = snapshot

    def add(self, key: str, snapshot: str) -> None:
        del self[snapshot]
        self[key] = snapshot


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    engine = await Engine.start(EngineSettings(templates=("base",), snapshot_dir=tmp_path / "snapshots"))
    yield engine
    await engine.aclose()


@pytest.fixture
def index() -> Index:
    return Index()


@pytest.fixture
def builder(engine: Engine, index: Index, tmp_path: Path) -> TemplateBuilder:
    return TemplateBuilder(engine, index, ImageStore(engine, index, tmp_path / "images", None))


def spec(*steps: Step) -> BuildSpec:
    return BuildSpec("me", steps, lambda _: None, from_template="base", limits=Limits(disk_mb=64))


def identity() -> Template:
    return Template("tid", "mine", (), "", build_id="b1")


async def test_a_built_template_starts_sandboxes(
    engine: Engine, builder: TemplateBuilder, tmp_path: Path
) -> None:
    steps = (Step("RUN", ("echo $X > /etc/x; rm /etc/shells", "root")), Step("WORKDIR", ("/a/b",)))
    template = await builder.build(spec(Step("ENV", ("X", "y")), *steps), identity(), lambda *_: None)
    assert template.default_workdir == "/a/b"
    assert len(template.snapshots) == 2
    engine.built.add(template)
    sandbox = await engine.create(SandboxSpec("i1", "b1"))
    lines: list[str] = []
    async with Guest(sandbox.http_socket) as guest:
        command = Command("cat /etc/x; pwd; test -e /etc/shells || echo gone")
        assert await guest.run(command, lambda _, line: lines.append(line)) == ""
    assert lines == ["y", "/a/b", "gone"]
    assert sandbox.template is template


async def test_a_failed_build_leaves_neither_sandbox_nor_layer(
    engine: Engine, builder: TemplateBuilder, tmp_path: Path, index: Index
) -> None:
    with pytest.raises(BuildError, match="exit status 5") as caught:
        await builder.build(
            spec(Step("RUN", ("true",)), Step("RUN", ("exit 5",))), identity(), lambda *_: None
        )
    assert caught.value.step == "2"
    assert len(index) == 2  # the second is noted too, so that whatever there is of it is erased
    assert {path.name for path in (tmp_path / "snapshots").iterdir()} <= set(index.values())
    assert index.find(next(iter(index))) is not None
    assert list(engine.built) == []


async def test_a_step_cannot_fill_the_disk(builder: TemplateBuilder) -> None:
    with pytest.raises(BuildError, match="exit status 1"):
        step = Step("RUN", ("head -c 200M /dev/zero > /tmp/big",))
        await builder.build(spec(step), identity(), lambda *_: None)


async def test_holes_stay_holes_and_set_id_bits_do_nothing(
    engine: Engine, builder: TemplateBuilder, tmp_path: Path
) -> None:
    line = "cd /usr/local/bin && truncate -s 60M /var/tmp/a /var/tmp/b && cp /bin/id idle && chmod 4755 idle"
    template = await builder.build(spec(Step("RUN", (line, "root"))), identity(), lambda *_: None)
    engine.built.add(template)
    sandbox = await engine.create(SandboxSpec("i2", "b1"))
    lines: list[str] = []
    async with Guest(sandbox.http_socket) as guest:
        command = Command("stat -c '%s %b' /var/tmp/b; idle -u", user="user")
        await guest.run(command, lambda _, line: lines.append(line))
    assert lines == [f"{60 << 20} 0", "1000"]


@pytest.mark.parametrize(
    "step",
    [
        Step("RUN", ()),
        Step("ENV", ("A",)),
        Step("ENV", ("A-B", "1")),
        Step("USER", ("a b",)),
        Step("USER", ("x:0",)),
        Step("WORKDIR", ("",)),
        Step("COPY", ("a", "b", "", ""), None),
        Step("COPY", ("a", "b", "x;y", ""), "0" * 64),
        Step("COPY", ("a", "b", "", "99"), "0" * 64),
        Step("ADD", ("a", "b")),
    ],
)
def test_steps_that_make_no_sense_are_refused(step: Step) -> None:
    with pytest.raises(TemplateError):
        instructions.next_context(step, Context())


def test_working_directories_are_relative_to_the_last() -> None:
    context = Context()
    for path, expected in (
        ("app", "/home/user/app"),
        ("sub/", "/home/user/app/sub/"),
        ("/x/../y", "/y"),
        ("~", "/home/user"),
    ):
        context = instructions.next_context(Step("WORKDIR", (path,)), context)
        assert context.workdir == expected


def test_keys_tell_everything_that_matters_apart() -> None:
    step = Step("RUN", ("x",))
    context = Context()
    keys = {
        context.key("p", step),
        context.key("q", step),
        context.key("p", Step("RUN", ("x", "root"))),
        Context(user="root").key("p", step),
        Context(workdir="/").key("p", step),
        context.with_env(("A", "1")).key("p", step),
        context.key("p", Step("RUN", ("x",), files_hash="0")),
    }
    assert len(keys) == 7
