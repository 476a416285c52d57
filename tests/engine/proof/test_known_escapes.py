"""The known escapes of comparable products, each as a test of the property that it broke."""

import ast
import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

import ringfence
from ringfence.engine.engine import Engine
from ringfence.engine.proof.battery import run_probes
from ringfence.engine.proof.model import Finding
from ringfence.engine.settings import EngineSettings

Held = Callable[[str], None]
SOURCE = Path(ringfence.__file__).parent


@pytest.fixture(scope="module")
def findings() -> dict[str, list[Finding]]:
    async def attack() -> tuple[Finding, ...]:
        engine = await Engine.start(EngineSettings(templates=("base",)))
        try:
            return (await run_probes(engine, "base", "all")).findings
        finally:
            await engine.aclose()

    by_attack: dict[str, list[Finding]] = {}
    for finding in asyncio.run(attack()):
        by_attack.setdefault(finding.attack, []).append(finding)
    return by_attack


@pytest.fixture
def held(findings: dict[str, list[Finding]]) -> Held:
    def check(attack: str) -> None:
        assert attack in findings
        assert [one for one in findings[attack] if one.verdict == "got through"] == []

    return check


def test_native_code_is_no_way_out(held: Held) -> None:
    """CVE-2025-5120, CVE-2025-9959 of smolagents: ctypes passes every check of Python code."""
    for attack in ("mounts", "exploit-helpers", "another-process-is-read", "a-host-file-is-out-of-reach"):
        held(attack)


def test_the_program_of_the_runtime_cannot_be_overwritten(held: Held) -> None:
    """CVE-2019-5736 of runc."""
    held("the-nursery-is-read")
    held("magic-links-of-pid-1")


def test_no_open_directory_leads_outside(held: Held) -> None:
    """CVE-2024-21626 of runc."""
    held("a-leaked-descriptor-leads-outside")


def test_masks_and_settings_of_proc_cannot_be_written_through(held: Held) -> None:
    """CVE-2025-31133, CVE-2025-52565, CVE-2025-52881 of runc."""
    held("the-hosts-settings-are-written")
    held("the-hosts-secrets-are-read")
    held("an-id-map-is-written-again")


def test_files_get_no_power_by_their_attributes(held: Held) -> None:
    """CVE-2023-0386 of overlayfs."""
    held("attributes-give-power")


def test_the_tables_of_the_firewall_are_out_of_reach(held: Held) -> None:
    """CVE-2021-22555, CVE-2016-4997: socket options of netfilter from a user namespace."""
    held("tables-of-the-firewall")


def test_nothing_is_inherited_that_leads_anywhere(held: Held) -> None:
    """CVE-2024-21626 of runc, and every other descriptor that a fork without exec would keep."""
    held("descriptors-are-inherited")
    held("a-pidfd-leads-into-others")


def test_watches_and_locks_do_not_reach_neighbours(held: Held) -> None:
    """Read-only binds share inodes: what one opens or locks, the others feel."""
    held("what-a-neighbour-opens")
    held("a-lock-of-a-neighbour")
    held("a-lock-on-a-device")
    held("who-opens-a-device")


def test_no_cgroup_can_run_a_program_on_the_host(held: Held) -> None:
    """CVE-2022-0492."""
    held("a-release-agent-is-set")


def test_abstract_sockets_of_the_host_are_out_of_reach(held: Held) -> None:
    """CVE-2020-15257 of containerd."""
    held("an-abstract-socket-of-the-host")


def test_terminal_input_cannot_be_forged_whatever_the_high_bits(held: Held) -> None:
    """CVE-2017-5226, CVE-2019-10063, CVE-2023-28100 of bubblewrap and Flatpak, CVE-2023-1523 of snap."""
    held("input-for-a-terminal-is-forged")


def test_new_calls_for_namespaces_and_mounts_are_refused_like_the_old(held: Held) -> None:
    """CVE-2021-41133 of Flatpak; clone3 in sandlock."""
    held("a-new-namespace-by-clone3")
    held("a-new-namespace-by-clone")
    held("a-new-namespace-by-unshare")
    held("mounts")


def test_neither_the_guest_nor_neighbours_take_signals(held: Held) -> None:
    """Sandboxes with one user id, whose children killed their supervisor."""
    held("the-guest-is-killed")
    held("a-neighbours-process")


def test_io_uring_does_not_pass_the_filter(held: Held) -> None:
    held("io-uring")


def test_sockets_are_judged_by_what_the_kernel_looks_at(held: Held) -> None:
    """Filters that compared 64 bits of a 32-bit argument; CVE-2024-1086, CVE-2020-14386."""
    held("odd-sockets")
    held("netlink-of-the-firewall")
    held("raw-sockets")


def test_foreign_calling_conventions_end_the_process(held: Held) -> None:
    held("the-32-bit-calls")
    held("the-x32-calls")


def test_the_services_inside_ask_for_the_token(held: Held) -> None:
    """Control servers inside a sandbox that its own code could call."""
    held("the-services-inside-answer-without-token")


def test_metadata_and_private_networks_are_out_of_reach(held: Held) -> None:
    """Sandboxes whose code reached the cloud's credentials or the host's services."""
    held("the-metadata-service")
    held("the-hosts-loopback")
    held("the-hosts-addresses")
    held("an-address-that-is-denied")


def test_keyrings_are_not_shared(held: Held) -> None:
    """CVE-2016-0728, and quotas of others."""
    held("keyrings")


def test_file_handles_do_not_open_files_of_the_host(held: Held) -> None:
    """Shocker, of early Docker."""
    held("a-file-handle-of-the-host")


def test_output_is_never_taken_for_an_answer(held: Held) -> None:
    held("output-is-taken-for-a-result")
    held("rubbish-on-the-kernels-channel")


@pytest.mark.parametrize("module", ["pickle", "marshal", "shelve", "dill", "tarfile"])
def test_the_host_unpacks_nothing_that_a_sandbox_made(module: str) -> None:
    """smolagents unpickled answers; llm-sandbox, inspect_ai and others unpacked archives."""
    importers = []
    for package in ("engine", "server", "integrations", "agents", "cli"):
        for path in (SOURCE / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if any(name.partition(".")[0] == module for name in names):
                    importers.append(str(path.relative_to(SOURCE)))
    # Templates are the operator's own input; images are unpacked in a child that has left the host first.
    allowed = ("engine/templates/", "engine/launcher/unpack.py")
    assert [name for name in importers if not name.startswith(allowed)] == []
