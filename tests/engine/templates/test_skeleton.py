"""The generated root: what programs need is there, what the host keeps to itself is not."""

import os
import ssl
import stat
from pathlib import Path

import pytest

from ringfence.engine.templates.hostfiles import add_host_files, find_certificates
from ringfence.engine.templates.plan import Plan
from ringfence.engine.templates.skeleton import _cpu_mask, host_root_directories, plan_skeleton

CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    plan_skeleton("abc123", "base").write(tmp_path / "tree")
    return tmp_path / "tree"


def test_what_programs_look_for(tree: Path) -> None:
    passwd = {line.split(":")[0]: line.split(":") for line in (tree / "etc/passwd").read_text().splitlines()}
    assert passwd["root"][2:4] == ["0", "0"]
    assert passwd["user"][2:] == ["1000", "1000", "", "/home/user", "/bin/bash"]
    assert passwd["nobody"][2] == "65534"
    groups = dict(line.split(":x:") for line in (tree / "etc/group").read_text().splitlines())
    assert groups["sudo"] == "27:user" and groups["user"] == "1000:"
    for name in ("hosts", "hostname", "resolv.conf", "nsswitch.conf", "profile", "bash.bashrc"):
        assert (tree / "etc" / name).read_text().strip()
    assert os.readlink(tree / "etc/localtime") == "/usr/share/zoneinfo/Etc/UTC"
    for name in ("dev", "proc", "sys", "usr", "run", "var/log", "opt", "mnt"):
        assert (tree / name).is_dir()


def test_modes_and_owners(tree: Path) -> None:
    assert stat.S_IMODE((tree / "tmp").stat().st_mode) == 0o1777
    assert stat.S_IMODE((tree / "var/tmp").stat().st_mode) == 0o1777
    assert stat.S_IMODE((tree / "code").stat().st_mode) == 0o777
    assert stat.S_IMODE((tree / "root").stat().st_mode) == 0o775
    if os.geteuid() == 0:
        assert ((tree / "root").stat().st_uid, (tree / "root").stat().st_gid) == (0, 1000)
        assert (tree / "home/user").stat().st_uid == 1000
        assert (tree / "home/user/.bashrc").stat().st_gid == 1000
        assert (tree / "etc/passwd").stat().st_uid == 0


def test_nothing_secret_and_nothing_executable_of_the_hosts(tree: Path) -> None:
    for name in (
        "shadow",
        "gshadow",
        "ssh",
        "sudoers",
        "machine-id",
        "pip.conf",
        "npmrc",
        "gitconfig",
        "apt/sources.list",
    ):
        assert not os.path.lexists(tree / "etc" / name), name
    assert list((tree / "etc/apt").rglob("*.list")) == []
    for path in tree.rglob("*"):
        mode = path.lstat().st_mode
        assert not mode & (stat.S_ISUID | stat.S_ISGID), path
        if stat.S_ISREG(mode):
            assert b"PRIVATE KEY" not in path.read_bytes(), path
            assert not mode & 0o111, path


def test_links_lead_into_usr_or_stay_in_the_tree(tree: Path) -> None:
    for path in tree.rglob("*"):
        if path.is_symlink() and (target := os.readlink(path)).startswith("/"):
            assert target.startswith(("/usr/", "/etc/", "/run", "/proc/")), f"{path} -> {target}"


def test_programs_of_the_host_are_where_the_host_has_them(tree: Path) -> None:
    for name in ("bin", "sbin", "lib", "lib64"):
        outside = Path("/") / name
        if outside.is_symlink():
            assert os.readlink(tree / name) == os.readlink(outside)
        elif outside.is_dir():
            assert (tree / name).is_dir() and f"/{name}" in host_root_directories()


def test_processors_can_be_counted(tree: Path) -> None:
    cpu = tree / "sys/devices/system/cpu"
    count = os.cpu_count() or 1
    assert (cpu / "possible").read_text() == (f"0-{count - 1}\n" if count > 1 else "0\n")
    assert len(list(cpu.glob("cpu*/topology/core_id"))) == count
    masks = [int(path.read_text().replace(",", ""), 16) for path in cpu.glob("cpu*/topology/thread_siblings")]
    assert sorted(masks) == [1 << number for number in range(count)]


@pytest.mark.parametrize(("count", "mask"), [(1, "1"), (3, "4"), (33, "00000001,00000000")])
def test_processor_masks_are_written_as_sysfs_does(count: int, mask: str) -> None:
    assert _cpu_mask({count - 1}, count) == mask


def test_hosts_without_a_merged_usr_show_their_own_directories(tmp_path: Path) -> None:
    for name in ("usr", "bin", "lib"):
        (tmp_path / name).mkdir()
    (tmp_path / "sbin").symlink_to("usr/sbin")

    assert host_root_directories(tmp_path) == ("/usr", "/bin", "/lib")


def test_e2bs_marks(tree: Path) -> None:
    assert (tree / ".e2b").read_text() == "ENV_ID=base\nTEMPLATE_ID=abc123\nBUILD_ID=abc123\n"
    assert (tree / "run/e2b/.E2B_SANDBOX").read_text() == "true"
    assert stat.S_IMODE((tree / "run/e2b/.E2B_SANDBOX").stat().st_mode) == 0o444


def test_a_login_shell_keeps_the_path_it_was_given(tree: Path, tmp_path: Path) -> None:
    script = f'. {tree}/etc/profile; echo "$PATH"; echo "$PS1"'
    command = ["/bin/sh", "-c", script]
    assert run(command, {"PATH": "/given:/bin", "HOME": str(tmp_path)}) == "/given:/bin\n\\w \\$ \n"


def test_a_login_shell_reads_the_users_own_files(tree: Path, tmp_path: Path) -> None:
    (tmp_path / ".bashrc").write_text("export FROM_BASHRC=1\n")
    (tmp_path / ".profile").write_text("export FROM_PROFILE=2\n")

    script = f'. {tree}/etc/profile; echo "$FROM_BASHRC$FROM_PROFILE"'
    assert run(["/bin/bash", "-c", script], {"PATH": "/bin", "HOME": str(tmp_path)}) == "12\n"


def run(command: list[str], env: dict[str, str]) -> str:
    import subprocess

    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


def host_etc(tmp_path: Path) -> Path:
    etc = tmp_path / "etc"
    (etc / "alternatives").mkdir(parents=True)
    (etc / "alternatives" / "awk").symlink_to("/usr/bin/mawk")
    (etc / "alternatives" / "odd").symlink_to("/home/someone/bin/odd")
    (etc / "fonts" / "conf.d").mkdir(parents=True)
    (etc / "fonts" / "fonts.conf").write_text("<fontconfig/>")
    (etc / "fonts" / "conf.d" / "10.conf").symlink_to("/usr/share/fontconfig/10.conf")
    (etc / "fonts" / "conf.d" / "99.conf").symlink_to("/home/someone/99.conf")
    (etc / "fonts" / "private.conf").write_text("x")
    (etc / "fonts" / "private.conf").chmod(0o600)
    (etc / "java-17-openjdk").mkdir()
    (etc / "java-17-openjdk" / "jvm.cfg").write_text("-server KNOWN")
    (etc / "java-17-openjdk" / "jmxremote.password").write_text("secret")
    (etc / "shadow").write_text("root:hash")
    (etc / "mime.types").symlink_to("shadow")
    return etc


@pytest.mark.skipif(os.geteuid() != 0, reason="only files of root's are taken")
def test_only_public_files_are_taken_from_the_host(tmp_path: Path) -> None:
    plan = Plan()

    add_host_files(plan, host_etc(tmp_path))
    plan.write(tmp_path / "tree")

    etc = tmp_path / "tree" / "etc"
    taken = {str(path.relative_to(etc)) for path in etc.rglob("*") if path.is_symlink() or path.is_file()}
    assert {name for name in taken if not name.startswith(("ssl", "pki"))} == {
        "alternatives/awk",
        "fonts/fonts.conf",
        "fonts/conf.d/10.conf",
        "java-17-openjdk/jvm.cfg",
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_files_that_are_not_roots_are_not_taken(tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "services").write_text("evil 1/tcp")
    os.chown(etc / "services", 12345, 12345)
    plan = Plan()

    add_host_files(plan, etc)

    assert not plan.has("/etc/services")


def test_only_certificates_are_taken_from_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(
        b"# comment\n" + CERTIFICATE + b"-----BEGIN PRIVATE KEY-----\nAA\n-----END PRIVATE KEY-----\n"
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))

    assert find_certificates() == CERTIFICATE


def test_the_hosts_certificates_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    certificates = find_certificates()
    if not certificates:
        pytest.skip("this machine has no certificate authorities")
    ssl.create_default_context(cadata=certificates.decode())


def test_equal_plans_have_equal_keys() -> None:
    assert plan_skeleton("a", "base").key() == plan_skeleton("a", "base").key()
    assert plan_skeleton("a", "base").key() != plan_skeleton("b", "base").key()
