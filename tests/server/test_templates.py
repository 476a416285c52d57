"""Templates built with the SDK's ``Template``, synchronous and asynchronous, against a real server."""

from __future__ import annotations

import traceback
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from e2b import (
    AsyncTemplate,
    BuildException,
    FileUploadException,
    LogEntry,
    SandboxException,
    Template,
    TemplateException,
    wait_for_port,
)
from e2b_code_interpreter import AsyncSandbox, Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from e2b.template.types import BuildInfo

    from conftest import RunningServer


def new_name() -> str:
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def api(server: RunningServer) -> dict[str, Any]:
    """The SDK's options for templates."""
    return {"api_key": server.key, "api_url": server.url}


@pytest.fixture
def http(server: RunningServer) -> Iterator[httpx.Client]:
    headers = {"X-API-Key": server.key}
    with httpx.Client(base_url=server.url, headers=headers, trust_env=False) as client:
        yield client


def base(directory: Path | None = None) -> Any:
    return Template(file_context_path=directory).from_template("base")


def build(api: dict[str, Any], template: Any, name: str, **options: Any) -> tuple[BuildInfo, list[LogEntry]]:
    logs: list[LogEntry] = []
    return Template.build(template, name, on_build_logs=logs.append, **options, **api), logs


def output(server: RunningServer, template: str, command: str, **options: Any) -> str:
    with Sandbox.create(template, **server.options) as sandbox:
        return sandbox.commands.run(command, **options).stdout


def messages(logs: list[LogEntry]) -> list[str]:
    return [entry.message for entry in logs]


def test_steps_end_up_in_the_sandbox(server: RunningServer, api: dict[str, Any]) -> None:
    name = new_name()
    template = (
        base()
        .run_cmd("echo by $(whoami) > ~/made")
        .run_cmd("echo by $(whoami) > /etc/made", user="root")
        .set_envs({"WORD": "for the build"})
        .run_cmd('echo "$WORD" > word')
        .set_workdir("/srv/deep/work")
        .run_cmd("pwd > where")
        .set_user("ann")
        .run_cmd("id -un > /tmp/who")
    )
    info, logs = build(api, template, name)
    assert info.name == name
    assert any("RUN echo by" in line for line in messages(logs))
    script = (
        'cat /home/user/made /etc/made /home/user/word /srv/deep/work/where /tmp/who; pwd; echo "[$WORD]"'
    )
    found = output(server, name, script)
    assert found.splitlines() == [
        "by user", "by root", "for the build", "/srv/deep/work", "ann", "/srv/deep/work", "[]",
    ]  # fmt: skip
    assert output(server, info.template_id, "id -un") == "ann\n"


def test_output_of_commands_is_logged_with_its_stream(api: dict[str, Any]) -> None:
    _, logs = build(api, base().run_cmd("echo out; echo err >&2; printf 'no end'"), new_name())
    lines = messages(logs)
    assert any(line.endswith("[stdout]: out") for line in lines)
    assert any(line.endswith("[stderr]: err") for line in lines)
    assert any(line.endswith("[stdout]: no end") for line in lines)


def test_copies_files_by_dockers_rules(server: RunningServer, api: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tree" / "sub dir").mkdir(parents=True)
    (tmp_path / "tree" / "a").write_text("a")
    (tmp_path / "tree" / ".hidden").write_text("h")
    (tmp_path / "tree" / "sub dir" / "b").write_text("b")
    (tmp_path / "one.txt").write_text("1")
    (tmp_path / "two.txt").write_text("2")
    (tmp_path / "link").symlink_to("one.txt")
    name = new_name()
    template = (
        base(tmp_path)
        .copy("tree", "/opt/tree")
        .copy("one.txt", "/opt/renamed", user="root", mode=0o640)
        .copy("*.txt", "/opt/texts/")
        .copy("one.txt", "relative/")
        .copy("link", "/opt/link")
        .run_cmd("mkdir -p /opt/there", user="root")
        .copy("two.txt", "/opt/there")
    )
    build(api, template, name)
    listing = output(
        server, name, "cd /opt; find tree texts there | sort; stat -c '%U %a' renamed tree/a; readlink link"
    )
    assert listing.splitlines() == [
        "texts", "texts/one.txt", "texts/two.txt", "there", "there/two.txt",
        "tree", "tree/.hidden", "tree/a", "tree/sub dir", "tree/sub dir/b",
        "root 640", "user 644", "one.txt",
    ]  # fmt: skip
    assert output(server, name, "cat relative/one.txt; ls -A /tmp") == "1"


def test_a_failed_command_names_its_step_and_line(api: dict[str, Any], http: httpx.Client) -> None:
    name = new_name()
    with pytest.raises(
        BuildException, match=r"failed to run command 'exit 3': command failed: exit status 3"
    ) as caught:
        build(api, base().run_cmd("true").run_cmd("exit 3"), name)
    assert "exit 3" in "".join(traceback.format_tb(caught.value.__traceback__))
    template = http.get(f"/templates/{name}").json()
    status = http.get(f"/templates/{name}/builds/{template['builds'][0]['buildID']}/status").json()
    assert status["status"] == "error"
    assert status["reason"]["step"] == "2"
    with pytest.raises(SandboxException, match="not found"):
        Sandbox.create(name, **api)


def test_an_unknown_user_is_named(api: dict[str, Any]) -> None:
    with pytest.raises(BuildException, match="unauthenticated: invalid username: 'root123'"):
        build(api, base().run_cmd("whoami", user="root123"), new_name())


def test_an_unknown_parent_is_refused(api: dict[str, Any]) -> None:
    with pytest.raises(BuildException, match="404: template 'nothing-here' not found"):
        build(api, Template().from_template("nothing-here").run_cmd("true"), new_name())


def test_layers_are_taken_from_the_cache(server: RunningServer, api: dict[str, Any]) -> None:
    name = new_name()
    template = base().run_cmd("date +%N > ~/first").run_cmd("date +%N > ~/second")
    build(api, template, name)
    before = output(server, name, "cat first second").split()
    _, logs = build(api, template, name)
    assert sum("CACHED" in line for line in messages(logs)) == 2
    assert output(server, name, "cat first second").split() == before
    other = base().run_cmd("date +%N > ~/first").skip_cache().run_cmd("date +%N > ~/second")
    _, logs = build(api, other, name)
    assert sum("CACHED" in line for line in messages(logs)) == 1
    after = output(server, name, "cat first second").split()
    assert after[0] == before[0] and after[1] != before[1]
    _, logs = build(api, template, name, skip_cache=True)
    assert not any("CACHED" in line for line in messages(logs))


def test_changed_files_are_copied_again(server: RunningServer, api: dict[str, Any], tmp_path: Path) -> None:
    name = new_name()
    for text in ("old", "new"):
        (tmp_path / "file").write_text(text)
        build(api, base(tmp_path).copy("file", "/opt/file"), name)
        assert output(server, name, "cat /opt/file") == text


def test_a_template_on_a_template(server: RunningServer, api: dict[str, Any]) -> None:
    first, second = new_name(), new_name()
    build(api, base().run_cmd("echo first > ~/a; echo gone > ~/b").set_workdir("/tmp"), first)
    build(api, Template().from_template(first).run_cmd("rm ~/b; echo second > ~/c; pwd"), second)
    assert output(server, second, "cd; cat a c; ls; pwd").split() == [
        "first",
        "second",
        "a",
        "c",
        "/home/user",
    ]
    assert output(server, second, "pwd") == "/tmp\n"


def test_deleted_directories_stay_deleted_when_made_again(server: RunningServer, api: dict[str, Any]) -> None:
    name = new_name()
    template = (
        base()
        .run_cmd("mkdir ~/d; touch ~/d/old")
        .run_cmd("rm -r ~/d; mkdir ~/d; touch ~/d/new")
        .run_cmd("ls ~/d")
    )
    build(api, template, name)
    assert output(server, name, "ls d") == "new\n"


def test_the_kernel_sees_what_was_installed(server: RunningServer, api: dict[str, Any]) -> None:
    name = new_name()
    package = "$(python3 -c 'import site; print(site.getsitepackages()[0])')/installed_here.py"
    build(api, base().run_cmd(f"echo VALUE = 42 > {package}", user="root").set_user("ann"), name)
    with Sandbox.create(name, **server.options) as sandbox:
        assert sandbox.run_code("import installed_here, os; (installed_here.VALUE, os.getcwd())").text == (
            "(42, '/home/ann')"
        )


def test_a_service_runs_when_a_sandbox_starts(server: RunningServer, api: dict[str, Any]) -> None:
    name = new_name()
    template = (
        base()
        .run_cmd("echo served > index.html")
        .set_envs({"PORT": "8123"})
        .set_start_cmd("python3 -m http.server $PORT", wait_for_port(8123))
    )
    build(api, template, name)
    assert output(server, name, "curl -s localhost:8123") == "served\n"
    child = new_name()
    build(api, Template().from_template(name).run_cmd("echo anew > index.html"), child)
    assert output(server, child, "curl -s localhost:8123") == "anew\n"


def test_tags_and_aliases(server: RunningServer, api: dict[str, Any]) -> None:
    name = new_name()
    first, _ = build(api, base().run_cmd("echo 1 > ~/n"), f"{name}:v1", tags=["stable"])
    assert sorted(first.tags) == ["stable", "v1"]
    second, _ = build(api, base().run_cmd("echo 2 > ~/n"), f"{name}:v2")
    assert output(server, f"{name}:stable", "cat n") == "1\n"
    assert output(server, f"{name}:v2", "cat n") == "2\n"
    info = Template.assign_tags(f"{name}:v2", ["stable", "next"], **api)
    assert info.build_id == second.build_id
    assert sorted(info.tags) == ["next", "stable"]
    assert {tag.tag: tag.build_id for tag in Template.get_tags(name, **api)} == {
        "v1": first.build_id, "v2": second.build_id, "stable": second.build_id, "next": second.build_id,
    }  # fmt: skip
    assert output(server, f"{name}:stable", "cat n") == "2\n"
    Template.remove_tags(name, ["next", "v1"], **api)
    assert sorted(tag.tag for tag in Template.get_tags(name, **api)) == ["stable", "v2"]
    with pytest.raises(SandboxException, match="not found"):
        Sandbox.create(f"{name}:v1", **server.options)
    with pytest.raises(TemplateException):
        Template.assign_tags(f"{name}:nothing", ["x"], **api)
    assert Template.exists(name, **api)
    assert not Template.exists(new_name(), **api)


@pytest.mark.parametrize("name", ["bad:", ":bad", "Bad Name", "a:b:c", "../x", "base"])
def test_impossible_names_are_refused(api: dict[str, Any], name: str) -> None:
    with pytest.raises(BuildException):
        build(api, base().run_cmd("true"), name)


def test_templates_are_their_owners(server: RunningServer, api: dict[str, Any], http: httpx.Client) -> None:
    name = new_name()
    info, _ = build(api, base().run_cmd("true"), name)
    stranger = {**api, "api_key": server.stranger}
    assert not Template.exists(name, **stranger)
    for template in (name, info.template_id, info.build_id):
        with pytest.raises(SandboxException, match="not found"):
            Sandbox.create(template, **server.stranger_options)
    with pytest.raises(BuildException, match="not found"):
        build(stranger, Template().from_template(name), new_name())
    with httpx.Client(base_url=server.url, headers={"X-API-Key": server.stranger}) as other:
        assert other.delete(f"/templates/{info.template_id}").status_code == 404
        assert name not in str(other.get("/templates").json())
    listed = next(entry for entry in http.get("/templates").json() if name in entry["names"])
    assert listed["templateID"] == info.template_id
    assert listed["buildStatus"] == "ready"


def test_delete_takes_the_name_and_leaves_sandboxes(
    server: RunningServer, api: dict[str, Any], http: httpx.Client
) -> None:
    name = new_name()
    info, _ = build(api, base().run_cmd("echo kept > ~/file"), name)
    with Sandbox.create(name, **server.options) as sandbox:
        assert http.delete(f"/templates/{info.template_id}").status_code == 204
        assert not Template.exists(name, **api)
        assert sandbox.commands.run("cat file").stdout == "kept\n"
        with pytest.raises(SandboxException, match="not found"):
            Sandbox.create(name, **server.options)
    assert http.delete(f"/templates/{info.template_id}").status_code == 404
    assert http.delete("/templates/base").status_code == 403


def test_limits_are_those_asked_for(server: RunningServer, api: dict[str, Any]) -> None:
    name = new_name()
    build(api, base().run_cmd("true"), name, cpu_count=1, memory_mb=640)
    with Sandbox.create(name, **server.options) as sandbox:
        info = sandbox.get_info()
        assert (info.cpu_count, info.memory_mb, info.name) == (1, 640, name)
    with pytest.raises(BuildException, match="over this server's limit"):
        build(api, base().run_cmd("true"), new_name(), memory_mb=10_000_000)


def test_a_build_is_polled_in_pages(api: dict[str, Any], http: httpx.Client) -> None:
    info, _ = build(api, base().run_cmd("seq 250"), new_name())
    path = f"/templates/{info.template_id}/builds/{info.build_id}/status"
    found: list[str] = []
    while page := http.get(path, params={"logsOffset": len(found)}).json()["logEntries"]:
        assert len(page) <= 100
        found += [entry["message"] for entry in page]
        assert {entry["step"] for entry in page} <= {"base", "1", "finalize"}
    assert [line.rpartition(": ")[2] for line in found if "[stdout]" in line] == [
        str(n) for n in range(1, 251)
    ]
    assert http.get(path, params={"level": "error"}).json()["logEntries"] == []
    assert http.get(path, params={"logsOffset": "x"}).status_code == 400
    assert http.post(f"/v2{path.removesuffix('/status')}", json={"fromTemplate": "base"}).status_code == 400


def test_upload_urls_are_the_only_way_in(server: RunningServer, http: httpx.Client) -> None:
    made = http.post("/v3/templates", json={"name": new_name()}).json()
    answer = http.get(f"/templates/{made['templateID']}/files/{'0' * 64}")
    assert answer.status_code == 201
    assert answer.json()["present"] is False
    url = answer.json()["url"]
    assert httpx.put(url, content=b"not a tar").status_code == 200
    assert httpx.put(f"{server.url}/uploads/guess", content=b"x").status_code == 403
    assert httpx.get(url).status_code == 403
    assert http.get(f"/templates/{made['templateID']}/files/{'0' * 64}").json()["present"] is True
    assert http.get(f"/templates/{made['templateID']}/files/..%2f..%2fetc").status_code == 400
    build_path = f"/templates/{made['templateID']}/builds/{made['buildID']}"
    step = {"type": "COPY", "args": ["x", "/x", "", ""], "filesHash": "0" * 64}
    assert http.post(f"/v2{build_path}", json={"fromTemplate": "base", "steps": [step]}).status_code == 202
    status: dict[str, Any] = {"status": "waiting"}
    while status["status"] in ("waiting", "building"):
        status = http.get(f"{build_path}/status").json()
    assert status["status"] == "error"
    assert "failed to copy 'x'" in status["reason"]["message"]


def test_missing_files_are_told_before_the_build(api: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises((BuildException, FileUploadException, ValueError)):
        build(api, base(tmp_path).copy("nothing", "/opt"), new_name())


async def test_asynchronously(server: RunningServer, api: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("async")
    name = new_name()
    template = AsyncTemplate(file_context_path=tmp_path).from_template("base").copy("file", "/opt/file")
    logs: list[LogEntry] = []
    started = await AsyncTemplate.build_in_background(template, name, **api)
    status = await AsyncTemplate.get_build_status(started, **api)
    while status.status.value in ("waiting", "building"):
        status = await AsyncTemplate.get_build_status(started, **api)
    assert status.status.value == "ready"
    await AsyncTemplate.build(template, name, on_build_logs=logs.append, **api)
    assert any("CACHED" in line for line in messages(logs))
    async with await AsyncSandbox.create(name, **server.options) as sandbox:
        assert (await sandbox.commands.run("cat /opt/file")).stdout == "async"
    assert await AsyncTemplate.exists(name, **api)


def test_templates_survive_a_restart(launch: Callable[..., RunningServer], tmp_path: Path) -> None:
    name = new_name()
    keys = []
    for attempt in range(2):
        server = launch(
            tmp_path / "data", templates="base", **({"RINGFENCE_API_KEY": keys[0]} if keys else {})
        )
        if not keys:
            keys.append(f"{server.key},{server.stranger}")
        options = {"api_key": keys[0].partition(",")[0], "api_url": server.url}
        if attempt == 0:
            build(options, base().run_cmd("echo kept > ~/file"), name)
        with Sandbox.create(name, sandbox_url=server.url, **options) as sandbox:
            assert sandbox.commands.run("cat file").stdout == "kept\n"
        assert server.stop() == 0


def test_a_replaced_build_lives_on_below_its_snapshots(server: RunningServer, api: dict[str, Any]) -> None:
    name = new_name()
    build(api, base().run_cmd("echo first > ~/file"), name)
    with Sandbox.create(name, **server.options) as sandbox:
        sandbox.files.write("more", "more\n")
        snapshot = sandbox.create_snapshot()
        build(api, base().run_cmd("echo second > ~/file"), name)
        assert sandbox.commands.run("cat file").stdout == "first\n"
    assert output(server, name, "cat file") == "second\n"
    assert output(server, snapshot.snapshot_id, "cat file more") == "first\nmore\n"


def test_history_of_tags(server: RunningServer, api: dict[str, Any], http: httpx.Client) -> None:
    name = new_name()
    first, _ = build(api, base().run_cmd("echo 1 > ~/n"), f"{name}:v1", tags=["stable"])
    second, _ = build(api, base().run_cmd("echo 2 > ~/n"), f"{name}:v2")
    Template.assign_tags(f"{name}:v2", ["stable"], **api)
    tags = f"/templates/{first.template_id}/tags"
    assert http.get(f"{tags}/count").json() == {"total": 3}
    for tag, there in (("stable", True), (" STABLE ", True), ("other", False)):
        answer = http.get(f"{tags}/exists", params={"tag": tag}).json()
        assert answer == {"exists": there, "normalizedTag": tag.strip().lower()}
    assert http.get(f"{tags}/exists", params={"tag": "not a tag"}).status_code == 400

    stable = http.get(f"{tags}/stable/assignments").json()
    assert [one["buildId"] for one in stable["data"]] == [second.build_id, first.build_id]
    assert stable["nextCursor"] is None
    page = http.get(f"{tags}/stable/assignments", params={"limit": 1}).json()
    rest = http.get(f"{tags}/stable/assignments", params={"cursor": page["nextCursor"]}).json()
    assert page["data"] + rest["data"] == stable["data"]

    groups = http.get(f"{tags}/groups", params={"sort": "name_desc", "assignmentLimit": 1}).json()["tags"]
    assert [(group["tag"], len(group["assignments"]), group["hasMore"]) for group in groups] == [
        ("v2", 1, False), ("v1", 1, False), ("stable", 1, True),
    ]  # fmt: skip
    latest = http.get(f"{tags}/groups", params={"tagsLimit": 2}).json()
    assert [group["tag"] for group in latest["tags"]] == ["stable", "v2"]
    rest = http.get(f"{tags}/groups", params={"tagsCursor": latest["nextCursor"], "search": ""}).json()
    assert [group["tag"] for group in rest["tags"]] == ["v1"]
    assert [g["tag"] for g in http.get(f"{tags}/groups", params={"search": "V"}).json()["tags"]] == [
        "v2",
        "v1",
    ]
    for query in ("sort=odd", "tagsLimit=0", "tagsLimit=x", "assignmentLimit=101", "tagsCursor=%ff"):
        assert http.get(f"{tags}/groups?{query}").status_code == 400

    Template.remove_tags(name, ["stable"], **api)
    assert http.get(f"{tags}/exists", params={"tag": "stable"}).json()["exists"] is False
    assert http.get("/templates/nothing/tags/count").status_code == 404
    stranger = {"X-API-Key": server.stranger}
    assert http.get(f"{tags}/count", headers=stranger).status_code == 404


def test_public_templates(server: RunningServer, api: dict[str, Any], http: httpx.Client) -> None:
    name = new_name()
    info, _ = build(api, base().run_cmd("echo shared > ~/n"), name)
    stranger = {"X-API-Key": server.stranger}
    path = f"/templates/{info.template_id}"
    for wanted in (info.template_id, name):
        with pytest.raises(SandboxException, match="not found"):
            Sandbox.create(wanted, **server.stranger_options)
    assert http.patch(f"/v2{path}", json={"public": True}, headers=stranger).status_code == 404
    assert http.patch(f"/v2{path}", json={"public": "perhaps"}).status_code == 400
    assert http.patch("/templates/base", json={"public": False}).status_code == 403
    assert http.patch(f"/v2{path}", json={"public": True}).json() == {"names": [name]}
    assert http.get(path).json()["public"] is True
    with Sandbox.create(info.template_id, **server.stranger_options) as sandbox:
        assert sandbox.commands.run("cat ~/n").stdout == "shared\n"
    theirs = {**api, "api_key": server.stranger}
    build(theirs, Template().from_template(info.template_id).run_cmd("echo more >> ~/n"), mine := new_name())
    # A name is its owner's to give; to others only the id means this template.
    with pytest.raises(SandboxException, match="not found"):
        Sandbox.create(name, **server.stranger_options)
    assert http.get(f"/templates/aliases/{info.template_id}", headers=stranger).json()["public"] is True
    for method, where in (("DELETE", path), ("GET", f"{path}/tags/count"), ("PATCH", path)):
        assert http.request(method, where, headers=stranger, json={}).status_code == 404
    assert http.patch(path, json={"public": False}).status_code == 200
    with pytest.raises(SandboxException, match="not found"):
        Sandbox.create(info.template_id, **server.stranger_options)
    # What was built on it meanwhile stays.
    with Sandbox.create(mine, **server.stranger_options) as sandbox:
        assert sandbox.commands.run("cat ~/n").stdout == "shared\nmore\n"
