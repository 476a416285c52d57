import asyncio
import base64
import gzip
import hashlib
import io
import os
import random
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from e2b import AsyncSandbox, FileNotFoundException, InvalidArgumentException, NotEnoughSpaceException

OCTETS = {"content-type": "application/octet-stream"}


async def test_write_and_read(sandbox: AsyncSandbox, workdir: Path) -> None:
    path = f"{workdir}/new/dir/file.txt"
    info = await sandbox.files.write(path, "héllo\n")
    assert (info.name, info.path, info.type.value) == ("file.txt", path, "file")
    assert await sandbox.files.read(path) == "héllo\n"
    assert await sandbox.files.read(path, format="bytes") == "héllo\n".encode()
    assert (workdir / "new/dir/file.txt").stat().st_mode & 0o777 == 0o644
    await sandbox.files.write(path, "x")
    assert await sandbox.files.read(path) == "x"
    assert await sandbox.files.read(f"~/{workdir.name}/new/dir/file.txt") == "x"
    with pytest.raises(FileNotFoundException, match=f"path '{workdir}/none' does not exist"):
        await sandbox.files.read(f"{workdir}/none")
    with pytest.raises(InvalidArgumentException, match="is a directory"):
        await sandbox.files.read(str(workdir))
    with pytest.raises(InvalidArgumentException, match="is a directory"):
        await sandbox.files.write(str(workdir), "x")
    with pytest.raises(InvalidArgumentException, match="path is a file"):
        await sandbox.files.write(f"{path}/below", "x")


async def test_empty_file(sandbox: AsyncSandbox, workdir: Path) -> None:
    for octets in (True, False):
        await sandbox.files.write(f"{workdir}/empty", b"", use_octet_stream=octets)
        assert await sandbox.files.read(f"{workdir}/empty", format="bytes") == b""


async def test_large_files_in_every_way(sandbox: AsyncSandbox, workdir: Path) -> None:
    data = random.Random(1).randbytes(5_000_000)
    path = f"{workdir}/large"
    for options in ({}, {"use_octet_stream": True}, {"gzip": True}):
        await sandbox.files.write(path, data, **options)
        assert (workdir / "large").read_bytes() == data
        (workdir / "large").unlink()
    await sandbox.files.write(path, io.BytesIO(data))
    assert await sandbox.files.read(path, format="bytes") == data
    assert await sandbox.files.read(path, format="bytes", gzip=True) == data
    stream = await sandbox.files.read(path, format="stream")
    assert b"".join([chunk async for chunk in stream]) == data


async def test_many_files_in_one_request(sandbox: AsyncSandbox, workdir: Path) -> None:
    names = [f"{workdir}/many/{number} ü" for number in range(20)]
    written = await sandbox.files.write_files([{"path": name, "data": name} for name in names])
    assert [info.path for info in written] == names
    assert all(Path(name).read_text() == name for name in names)


async def test_form_details(http: httpx.AsyncClient, workdir: Path) -> None:
    async def post(body: bytes, query: str = "") -> httpx.Response:
        headers = {"content-type": 'multipart/form-data; boundary="b"'}
        return await http.post(f"/files?{query}", content=body, headers=headers)

    def part(disposition: str, data: str) -> bytes:
        return f"--b\r\nContent-Disposition: form-data; {disposition}\r\n\r\n{data}\r\n".encode()

    # A part without a file name, as the JavaScript SDK sends it; others are ignored.
    body = part('name="other"', "ignored") + part('name="file"', "kept") + b"--b--\r\n"
    answer = await post(body, f"path={workdir}/one")
    assert answer.json() == [{"path": f"{workdir}/one", "name": "one", "type": "file"}]
    assert (workdir / "one").read_text() == "kept"
    assert (await post(body)).status_code == 400
    twice = part(f'name="file"; filename="{workdir}/two"', "1") * 2 + b"--b--\r\n"
    answer = await post(twice)
    assert (answer.status_code, answer.json()["code"]) == (400, 400)
    assert "same path" in answer.json()["message"]
    assert (await post(body[:-10], f"path={workdir}/one")).status_code == 400
    assert (await post(b"rubbish", f"path={workdir}/one")).status_code == 400
    answer = await http.post("/files", content=b"", headers={"content-type": "multipart/form-data"})
    assert answer.status_code == 400


async def test_refused_uploads(http: httpx.AsyncClient, workdir: Path) -> None:
    async def post(headers: dict[str, str], query: str, body: bytes = b"x") -> tuple[int, str]:
        answer = await http.post(f"/files?{query}", content=body, headers=headers)
        assert set(answer.json()) == {"code", "message"}
        assert answer.json()["code"] == answer.status_code
        return answer.status_code, answer.json()["message"]

    path = f"path={workdir}/file"
    assert (await post(OCTETS, ""))[0] == 400
    assert (await post({"content-type": "text/plain"}, path))[0] == 400
    assert (await post(OCTETS | {"content-encoding": "br"}, path))[0] == 400
    assert (await post(OCTETS | {"content-encoding": "gzip"}, path, b"no gzip"))[0] == 400
    assert (await post(OCTETS | {"content-encoding": "gzip"}, path, gzip.compress(b"cut off")[:-9]))[0] == 400
    status, message = await post(OCTETS, f"{path}&username=x")
    assert (status, message) == (401, "error looking up user 'x': user: unknown user x")
    os.mkfifo(workdir / "pipe")
    assert (await post(OCTETS, f"path={workdir}/pipe"))[0] == 400
    assert (await post(OCTETS, "path=~other/x"))[0] == 400


async def test_full_disk(run_envd) -> None:
    envd = run_envd(setup={"file_bytes": 1_000_000})
    sandbox = AsyncSandbox(**envd.sdk_options())
    for options in ({}, {"use_octet_stream": True}, {"gzip": True}):
        with pytest.raises(NotEnoughSpaceException, match="not enough disk space"):
            await sandbox.files.write("large", b"x" * 3_000_000, **options)
    await sandbox.files.write("small", b"x")
    (envd.home / "a").write_bytes(b"x" * 900_000)
    (envd.home / "b").write_bytes(b"x" * 900_000)
    async with httpx.AsyncClient(base_url=envd.url) as client:
        order = {"source_paths": ["a", "b"], "destination": "all"}
        assert (await client.post("/files/compose", json=order)).status_code == 507
    assert not (envd.home / "all").exists()
    assert (envd.home / "b").exists()


async def test_devices_are_not_files(http: httpx.AsyncClient) -> None:
    answer = await http.post("/files?path=/dev/full", content=b"x", headers=OCTETS)
    assert answer.status_code == 400  # a device is never written to
    answer = await http.get("/files?path=/dev/zero")
    assert answer.status_code == 400


async def test_gzip_negotiation(http: httpx.AsyncClient, workdir: Path) -> None:
    (workdir / "page.html").write_text("<p>" * 1000)

    async def encoding(accepted: str) -> str | None:
        headers = {"accept-encoding": accepted}
        answer = await http.get(f"/files?path={workdir}/page.html", headers=headers)
        assert answer.status_code == 200
        assert "Accept-Encoding" in answer.headers["vary"]
        assert answer.headers["content-type"].startswith("text/html")
        assert answer.headers["content-disposition"].startswith("inline")
        assert answer.headers["content-security-policy"].startswith("sandbox")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.text == "<p>" * 1000
        return answer.headers.get("content-encoding")

    assert await encoding("gzip") == "gzip"
    assert await encoding("gzip, deflate, br, zstd") is None
    assert await encoding("br, gzip, identity;q=0") == "gzip"
    assert await encoding("gzip;q=0.5, identity;q=0.1") == "gzip"
    assert await encoding("identity") is None
    assert await encoding("") is None
    assert await encoding("br") is None
    assert await encoding("gzip;q=0") is None
    assert await encoding("identity;q=0, *;q=1") == "gzip"
    refused = {"accept-encoding": "identity;q=0, br"}
    assert (await http.get(f"/files?path={workdir}/page.html", headers=refused)).status_code == 406


async def test_ranges_and_conditions(http: httpx.AsyncClient, workdir: Path) -> None:
    (workdir / "digits").write_bytes(b"0123456789" * 50_000)

    async def get(**headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await http.get(f"/files?path={workdir}/digits", headers={"accept-encoding": "gzip"} | named)

    answer = await get(range="bytes=3-6")
    assert (answer.status_code, answer.content) == (206, b"3456")
    assert answer.headers["content-range"] == "bytes 3-6/500000"
    assert (await get(range="bytes=-2")).content == b"89"
    assert (await get(range="bytes=499999-")).content == b"9"
    assert (await get(range="bytes=499990-600000")).content == b"0123456789"
    answer = await get(range="bytes=500000-")
    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */500000")
    assert len((await get(range="bytes=0-1,3-4")).content) == 500_000
    answer = await get(range="bytes=5-1")
    assert (answer.status_code, len(answer.content)) == (200, 500_000)
    tag, modified = answer.headers["etag"], answer.headers["last-modified"]
    assert (await get(if_none_match=tag)).status_code == 304
    assert (await get(if_modified_since=modified)).status_code == 304
    assert (await get(if_none_match='"other"', if_modified_since=modified)).status_code == 200
    assert (await get(range="bytes=0-0", if_range=tag)).status_code == 206
    assert (await get(range="bytes=0-0", if_range='"other"')).status_code == 200


async def test_files_without_a_size(http: httpx.AsyncClient, sandbox: AsyncSandbox) -> None:
    path = "/proc/sys/kernel/random/boot_id"
    wanted = Path(path).read_text()
    assert await sandbox.files.read(path) == wanted
    for encoding in ("identity", "gzip"):
        headers = {"accept-encoding": encoding}
        assert (await http.get(f"/files?path={path}", headers=headers)).text == wanted


async def test_head(http: httpx.AsyncClient, workdir: Path) -> None:
    (workdir / "file").write_bytes(b"12345")
    answer = await http.head(f"/files?path={workdir}/file", headers={"accept-encoding": "identity"})
    assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, "5", b"")


async def test_metadata(sandbox: AsyncSandbox, http: httpx.AsyncClient, workdir: Path) -> None:
    try:
        os.setxattr(workdir, "user.test", b"")
    except OSError:
        pytest.skip("the file system has no extended attributes")
    path = f"{workdir}/file"
    written = await sandbox.files.write(path, "x", metadata={"Owner": "me", "purpose": "a b"})
    assert written.metadata == {"owner": "me", "purpose": "a b"}
    assert (await sandbox.files.get_info(path)).metadata == written.metadata
    assert os.getxattr(path, "user.e2b.owner") == b"me"
    assert (await sandbox.files.list(str(workdir)))[0].metadata == written.metadata
    await sandbox.files.write(path, "x", metadata={"other": "1"}, use_octet_stream=True)
    assert (await sandbox.files.get_info(path)).metadata == {"other": "1"}
    await sandbox.files.write(path, "x")
    assert (await sandbox.files.get_info(path)).metadata is None
    for name, value in (("x" * 247, ""), ("key", "v" * 4096), ("key", "tab\there")):
        headers = OCTETS | {f"X-Metadata-{name}": value}
        assert (await http.post(f"/files?path={path}", content=b"", headers=headers)).status_code == 400


async def test_compose(http: httpx.AsyncClient, envd, workdir: Path) -> None:
    for name, size in (("a", 3_000_000), ("b", 0), ("c", 5)):
        (workdir / name).write_bytes(name.encode() * size)
    order = {"source_paths": [f"{workdir}/{name}" for name in "abc"], "destination": f"{workdir}/new/all"}
    answer = await http.post("/files/compose", json=order)
    assert (answer.status_code, answer.json()["path"]) == (200, f"{workdir}/new/all")
    assert (workdir / "new" / "all").read_bytes() == b"a" * 3_000_000 + b"ccccc"
    assert [path.name for path in workdir.iterdir()] == ["new"]
    assert [path.name for path in (workdir / "new").iterdir()] == ["all"]
    for change, status in (
        ({"source_paths": []}, 400),
        ({"source_paths": "x"}, 400),
        ({"destination": ""}, 400),
        ({"source_paths": [f"{workdir}/none"]}, 404),
        ({"source_paths": [str(workdir)]}, 400),
        ({"source_paths": [order["destination"]]}, 400),
        ({"source_paths": ["/etc/passwd"], "username": "x"}, 401),
    ):
        assert (await http.post("/files/compose", json=order | change)).status_code == status
    assert (await http.post("/files/compose", content=b"[" * 100_000)).status_code == 400
    assert os.listdir(f"/proc/{envd.pid}/task") == [str(envd.pid)]


async def test_token_guards_everything_else(guarded) -> None:
    refused = "unauthorized access, please provide a valid access token or method signing if supported"
    async with httpx.AsyncClient(base_url=guarded.url) as client:
        assert (await client.get("/health")).status_code == 204
        assert (await client.post("/init", json={})).status_code == 404
        for method, path in (
            ("GET", "/envs"),
            ("GET", "/metrics"),
            ("POST", "/process.Process/List"),
            ("POST", "/process.Process/Start"),
            ("POST", "/filesystem.Filesystem/Stat"),
            ("POST", "/files/compose"),
            ("GET", "/init"),
            ("DELETE", "/files"),
        ):
            for headers in ({}, {"X-Access-Token": "wrong"}, {"X-Access-Token": ""}):
                answer = await client.request(method, path, headers=headers, json={})
                assert answer.status_code == 401
                assert answer.json() == {"code": 401, "message": refused}
        assert (await client.get("/envs", headers=guarded.headers())).status_code == 200
    sandbox = AsyncSandbox(**guarded.sdk_options())
    assert (await sandbox.commands.run("echo ok")).stdout == "ok\n"
    await sandbox.files.write("file", "x")
    assert await sandbox.files.read("file") == "x"


async def test_signed_urls(guarded) -> None:
    sandbox = AsyncSandbox(**guarded.sdk_options())
    (guarded.home / "signed").write_text("content")
    async with httpx.AsyncClient() as client:

        async def get(url: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
            answer = await client.get(url, headers=headers or {})
            body = answer.text
            if answer.status_code != 200:
                assert answer.json() == {"code": answer.status_code, "message": answer.json()["message"]}
                body = answer.json()["message"]
            return answer.status_code, body

        assert await get(sandbox.download_url("signed")) == (200, "content")
        url = sandbox.download_url("signed", user="user", use_signature_expiration=60)
        assert await get(url) == (200, "content")
        assert await get(url.replace("username=user", "username=root")) == (401, "invalid signature")
        assert await get(url.replace("path=signed", "path=other")) == (401, "invalid signature")
        assert await get(url[:-1]) == (401, "invalid signature")
        expired = sandbox.download_url("signed", use_signature_expiration=-10)
        assert await get(expired) == (401, "signature is already expired")
        plain = f"{guarded.url}/files?path=signed"
        assert await get(plain) == (401, "missing signature query parameter")
        wrong = {"X-Access-Token": "wrong"}
        assert await get(plain, wrong) == (401, "access token present in header but does not match")
        assert await get(plain, guarded.headers()) == (200, "content")
        upload = sandbox.upload_url("signed")
        assert (await client.post(upload, files={"file": "new"})).status_code == 200
        assert await get(sandbox.download_url("signed")) == (200, "new")
        assert (await client.post(sandbox.download_url("signed"), files={"file": "x"})).status_code == 401


async def test_signature_is_as_documented(guarded) -> None:
    expires = int(time.time()) + 60
    digest = hashlib.sha256(f"signed:read::{guarded.token}:{expires}".encode()).digest()
    signed = {"path": "signed", "signature_expiration": expires}
    signed["signature"] = "v1_" + base64.b64encode(digest).decode().rstrip("=")
    (guarded.home / "signed").write_text("content")
    async with httpx.AsyncClient(base_url=guarded.url) as client:
        assert (await client.get("/files", params=signed)).status_code == 200
        signed["signature_expiration"] = "soon"
        assert (await client.get("/files", params=signed)).status_code == 400


async def test_plain_routes(http: httpx.AsyncClient) -> None:
    health = await http.get("/health")
    assert (health.status_code, health.content) == (204, b"")
    assert (await http.get("/envs")).json() == {
        "FROM_SANDBOX": "sandbox",
        "E2B_SANDBOX": "true",
        "E2B_SANDBOX_ID": "itest0000000000000000",
        "E2B_TEMPLATE_ID": "base",
    }
    assert (await http.get("/nowhere")).status_code == 404
    assert (await http.post("/process.Process/Nothing", json={})).status_code == 501


async def test_metrics(http: httpx.AsyncClient) -> None:
    await http.get("/metrics")
    measured = (await http.get("/metrics")).json()
    assert abs(measured["ts"] - time.time()) < 60
    assert measured["cpu_used_pct"] >= 0
    assert 0 < measured["mem_used"] <= measured["mem_total"]
    assert 0 < measured["disk_used"] <= measured["disk_total"]


async def test_metrics_use_the_limits(run_envd) -> None:
    envd = run_envd(memory_bytes=123 * 1024 * 1024, disk_bytes=456, cpus=2.0)
    async with httpx.AsyncClient(base_url=envd.url) as client:
        measured = (await client.get("/metrics")).json()
    assert (measured["mem_total_mib"], measured["disk_total"], measured["cpu_count"]) == (123, 456, 2)


async def test_cors(guarded) -> None:
    async with httpx.AsyncClient(base_url=guarded.url) as client:
        asked = {
            "origin": "https://example.com",
            "access-control-request-method": "POST",
            "access-control-request-headers": "x-access-token,connect-protocol-version",
        }
        answer = await client.options("/process.Process/Start", headers=asked)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "x-access-token" in answer.headers["access-control-allow-headers"]
        answer = await client.get("/envs", headers={"origin": "https://example.com"})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, "*")


async def test_upload_streams_to_disk(envd, workdir: Path) -> None:
    host, port = urlsplit(envd.url).netloc.split(":")
    reader, writer = await asyncio.open_connection(host, port)
    head = (
        f"POST /files?path={workdir}/slow HTTP/1.1\r\nhost: x\r\ncontent-type: application/octet-stream\r\n"
    )
    writer.write(f"{head}content-length: 2000000\r\n\r\n".encode() + b"x" * 1_000_000)
    async with asyncio.timeout(20):
        while not (workdir / "slow").exists() or (workdir / "slow").stat().st_size < 1_000_000:
            await asyncio.sleep(0.01)
        writer.write(b"y" * 1_000_000)
        assert b" 200 " in await reader.readline()
    writer.close()
    await writer.wait_closed()
    assert (workdir / "slow").stat().st_size == 2_000_000
