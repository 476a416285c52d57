"""The SDK's helpers for git, with repositories inside the sandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from e2b import GitAuthException, SandboxException

if TYPE_CHECKING:
    from tests.conformance.conftest import Face

PATH = "/home/user/repo"

GIT_SERVER = r"""
import base64, http.server, os, subprocess

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        wanted = "Basic " + base64.b64encode(b"alice:tok3n").decode()
        if self.headers.get("Authorization") != wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", "Basic realm=git")
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        env = {**os.environ, "GIT_PROJECT_ROOT": "/home/user/served", "GIT_HTTP_EXPORT_ALL": "1",
               "REQUEST_METHOD": self.command, "PATH_INFO": path, "QUERY_STRING": query,
               "REMOTE_USER": "alice",
               "CONTENT_TYPE": self.headers.get("Content-Type", ""), "CONTENT_LENGTH": str(len(body)),
               "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", "")}
        answer = subprocess.run(["git", "http-backend"], input=body, capture_output=True, env=env).stdout
        head, _, content = answer.partition(b"\r\n\r\n")
        self.send_response(200)
        for line in head.decode().splitlines():
            self.send_header(*line.split(": ", 1))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", 8090), Handler).serve_forever()
"""


async def repository(sdk: Face, box: Any) -> Any:
    git = box.git
    await sdk(git.init, PATH, initial_branch="main")
    await sdk(git.configure_user, "Someone", "someone@example.org")
    await sdk(box.files.write, f"{PATH}/README", "hello\n")
    await sdk(git.add, PATH)
    await sdk(git.commit, PATH, "First")
    return git


async def test_init_add_commit_status(sdk: Face, box: Any) -> None:
    git = await repository(sdk, box)
    status = await sdk(git.status, PATH)
    assert (status.current_branch, status.is_clean) == ("main", True)
    await sdk(box.files.write, f"{PATH}/new", "x")
    await sdk(box.files.write, f"{PATH}/README", "changed\n")
    status = await sdk(git.status, PATH)
    assert {file.name for file in status.file_status} == {"new", "README"}
    assert (status.has_untracked, status.has_staged) == (True, False)
    await sdk(git.add, PATH, files=["new"])
    assert (await sdk(git.status, PATH)).has_staged
    await sdk(git.reset, PATH, mode="hard")
    assert await sdk(box.files.read, f"{PATH}/README") == "hello\n"


async def test_branches(sdk: Face, box: Any) -> None:
    git = await repository(sdk, box)
    await sdk(git.create_branch, PATH, "feature")
    branches = await sdk(git.branches, PATH)
    assert (sorted(branches.branches), branches.current_branch) == (["feature", "main"], "feature")
    await sdk(git.checkout_branch, PATH, "main")
    await sdk(git.delete_branch, PATH, "feature", force=True)
    assert (await sdk(git.branches, PATH)).branches == ["main"]


async def test_restore_and_config(sdk: Face, box: Any) -> None:
    git = await repository(sdk, box)
    await sdk(box.files.write, f"{PATH}/README", "broken\n")
    await sdk(git.restore, PATH, paths=["README"])
    assert await sdk(box.files.read, f"{PATH}/README") == "hello\n"
    await sdk(git.set_config, "core.editor", "true", scope="local", path=PATH)
    assert await sdk(git.get_config, "core.editor", scope="local", path=PATH) == "true"
    assert await sdk(git.get_config, "user.name") == "Someone"
    assert await sdk(git.get_config, "not.there") is None


async def test_remotes(sdk: Face, box: Any) -> None:
    git = await repository(sdk, box)
    await sdk(git.init, "/home/user/remote.git", bare=True, initial_branch="main")
    await sdk(git.remote_add, PATH, "origin", "/home/user/remote.git")
    assert await sdk(git.remote_get, PATH, "origin") == "/home/user/remote.git"
    await sdk(git.push, PATH, remote="origin", branch="main")
    await sdk(git.clone, "/home/user/remote.git", path="/home/user/copy")
    assert await sdk(box.files.read, "/home/user/copy/README") == "hello\n"
    await sdk(box.files.write, f"{PATH}/second", "x")
    await sdk(git.add, PATH)
    await sdk(git.commit, PATH, "Second")
    await sdk(git.push, PATH)
    await sdk(git.pull, "/home/user/copy")
    assert await sdk(box.files.exists, "/home/user/copy/second")
    with pytest.raises(SandboxException):
        await sdk(git.clone, "/home/user/nothing.git", path="/home/user/none")


async def test_remotes_that_want_credentials(sdk: Face, box: Any) -> None:
    git = await repository(sdk, box)
    address, alice = "http://127.0.0.1:8090/repo.git", {"username": "alice", "password": "tok3n"}
    await sdk(git.init, "/home/user/served/repo.git", bare=True, initial_branch="main")
    await sdk(box.files.write, "server.py", GIT_SERVER)
    await sdk(box.commands.run, "python3 server.py", background=True)
    await sdk(box.commands.run, "until curl -s -o /dev/null localhost:8090; do sleep 0.05; done")
    await sdk(git.remote_add, PATH, "origin", address)
    with pytest.raises(GitAuthException):
        await sdk(git.push, PATH, remote="origin", branch="main")
    await sdk(git.push, PATH, remote="origin", branch="main", **alice)
    with pytest.raises(GitAuthException):
        await sdk(git.clone, address, path="/home/user/copy", username="alice", password="wrong")
    await sdk(git.clone, address, path="/home/user/copy", **alice)
    assert await sdk(box.files.read, "/home/user/copy/README") == "hello\n"
    # The credentials are not kept, unless that is asked for.
    assert await sdk(git.remote_get, "/home/user/copy", "origin") == address
    await sdk(git.dangerously_authenticate, **alice, host="127.0.0.1:8090", protocol="http")
    await sdk(git.pull, "/home/user/copy")
