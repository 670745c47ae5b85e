"""A program of a few bytes that keeps VMs open on the emulated host, for as long as the host is up.

KVM patches the host kernel's code while it runs where it first or last needs a static key: with
the first and the last VM (preempt notifiers, in __schedule()), with the first and the last vCPU
that has a local APIC not enabled by software, and with the first and the last that has none at all.
QEMU's TCG with several threads loses such a patch now and then: a CPU translates code while
another one changes it, keeps the old, then meets a breakpoint that is no longer there, and the host
dies with "Oops: int3" (seen in 2 of 5 runs of a test that makes a few dozen VMs; with a VM held
open in none of 10). The first process starts this program while there is one CPU only, when nothing
can go wrong; from then on none of these is the first or the last.
"""

import struct

_BASE = 0x400000
_HEADERS = 64 + 56

# x86-64, position-independent.
_CODE = bytes.fromhex(
    "488d3d67000000"  # lea rdi, [path]
    "6a025e"          # push O_RDWR; pop rsi
    "6a0258"          # push open; pop rax
    "0f05"            # syscall
    "89c5"            # mov ebp, eax
    "e83a000000"      # call make_vm
    "89df"            # mov edi, ebx
    "be60ae0000"      # mov esi, KVM_CREATE_IRQCHIP
    "31d2"            # xor edx, edx
    "e844000000"      # call ioctl
    "89df"            # mov edi, ebx
    "e836000000"      # call make_vcpu: it has a local APIC, not enabled
    "e820000000"      # call make_vm
    "89df"            # mov edi, ebx
    "e82a000000"      # call make_vcpu: it has none
    "6a015f"          # push stdout; pop rdi
    "488d3536000000"  # lea rsi, [held]
    "6a055a"          # push 5; pop rdx
    "6a0158"          # push write; pop rax
    "0f05"            # syscall
    "6a2258"          # again: push pause; pop rax
    "0f05"            # syscall
    "ebf9"            # jmp again
    "89ef"            # make_vm: mov edi, ebp
    "be01ae0000"      # mov esi, KVM_CREATE_VM
    "31d2"            # xor edx, edx
    "e80a000000"      # call ioctl
    "89c3"            # mov ebx, eax
    "c3"              # ret
    "be41ae0000"      # make_vcpu: mov esi, KVM_CREATE_VCPU
    "31d2"            # xor edx, edx
    "6a1058"          # ioctl: push ioctl; pop rax
    "0f05"            # syscall
    "c3"              # ret
)
_DATA = b"/dev/kvm\0" + b"held\n"


def elf() -> bytes:
    """The program: it prints "held" when the VMs are there or cannot be had, and waits for ever."""
    content = _CODE + _DATA
    size = _HEADERS + len(content)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01", 2, 62, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0,
    )
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return header + load + content
