import re
from pathlib import Path

import pytest

from ringfence.engine.isolation import linux
from ringfence.engine.isolation.syscalls import NUMBERS

_X86_64_HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
_GENERIC_HEADER = Path("/usr/include/asm-generic/unistd.h")


@pytest.mark.skipif(not _X86_64_HEADER.exists(), reason="needs the kernel headers of x86_64")
def test_the_x86_64_numbers_are_those_of_the_kernel_headers():
    header = dict(re.findall(r"#define __NR_(\w+) (\d+)", _X86_64_HEADER.read_text()))
    ours = NUMBERS["x86_64"]
    assert {name: ours.get(name) for name in header} == {name: int(number) for name, number in header.items()}


@pytest.mark.skipif(not _GENERIC_HEADER.exists(), reason="needs the kernel headers")
def test_the_aarch64_numbers_are_those_of_the_generic_header():
    header = {
        name: int(number)
        for name, number in re.findall(r"#define __NR_(\w+)\s+(\d+)", _GENERIC_HEADER.read_text())
        if name not in ("syscalls", "arch_specific_syscall", "sync_file_range2")
        and not 403 <= int(number) <= 423  # for 32-bit machines only
    }
    ours = NUMBERS["aarch64"]
    assert {name: ours.get(name) for name in header} == header


@pytest.mark.parametrize("arch", NUMBERS)
def test_no_number_is_used_twice(arch):
    assert len(set(NUMBERS[arch].values())) == len(NUMBERS[arch])


def test_new_calls_have_the_same_number_everywhere():
    new = {name: number for name, number in NUMBERS["x86_64"].items() if number >= 424}
    assert new == {name: number for name, number in NUMBERS["aarch64"].items() if number >= 424}


@pytest.mark.parametrize("arch", NUMBERS)
def test_the_call_layer_uses_the_same_numbers(arch):
    used = {**linux._NEW_NUMBERS, **linux._OLD_NUMBERS[arch]}
    assert used == {name: NUMBERS[arch][name] for name in used}
