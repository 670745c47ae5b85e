"""A program of a few bytes that keeps one VM open on the emulated host, for as long as the host is up.

The first VM and the last one patch the host kernel's code while it runs (the static key of the
preempt notifiers in __schedule()), and QEMU's TCG with several threads does not always carry that
out as a processor does: a CPU then meets a breakpoint that is no longer there, and the host dies
with "Oops: int3" (seen in 2 of 5 runs of a test that makes a few dozen VMs; with a VM held open in
none of 10). With a VM held open no later one is the first or the last.
"""

import struct

_BASE = 0x400000
_HEADERS = 64 + 56

# x86-64, position-independent.
_CODE = bytes.fromhex(
    "488d3d3d000000"  # lea rdi, [path]
    "be02000000"      # mov esi, O_RDWR
    "b802000000"      # mov eax, open
    "0f05"            # syscall
    "89c7"            # mov edi, eax
    "be01ae0000"      # mov esi, KVM_CREATE_VM
    "31d2"            # xor edx, edx
    "b810000000"      # mov eax, ioctl
    "0f05"            # syscall
    "bf01000000"      # mov edi, stdout
    "488d351e000000"  # lea rsi, [held]
    "ba05000000"      # mov edx, 5
    "b801000000"      # mov eax, write
    "0f05"            # syscall
    "b822000000"      # again: mov eax, pause
    "0f05"            # syscall
    "ebf7"            # jmp again
)
_DATA = b"/dev/kvm\0" + b"held\n"


def elf() -> bytes:
    """The program: it prints "held" once the VM is there (or cannot be had), and waits for ever."""
    content = _CODE + _DATA
    size = _HEADERS + len(content)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01", 2, 62, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0,
    )
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return header + load + content
