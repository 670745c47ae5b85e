"""The hosts that can be emulated and the kernels that run on them: data, no behaviour."""

from dataclasses import dataclass
from typing import Tuple


@dataclass(frozen=True)
class Host:
    name: str
    summary: str
    qemu: str  # program that emulates it
    qemu_package: str
    qemu_arguments: Tuple[str, ...]
    elf_machine: int  # e_machine of the programs that it can run
    modules: Tuple[str, ...]  # inserted with their dependencies; the host is no host without
    optional_modules: Tuple[str, ...]  # inserted where the kernel package has them


@dataclass(frozen=True)
class Kernel:
    series: str
    summary: str
    meta_packages: Tuple[str, ...]  # in order of preference; each depends on the newest image


HOSTS = {
    host.name: host
    for host in (
        Host(
            name="x86-svm",
            summary="x86-64 with AMD SVM; nested paging, TSC offsets, masterclock; no TSC scaling",
            qemu="qemu-system-x86_64",
            qemu_package="qemu-system-x86",
            qemu_arguments=("-accel", "tcg,thread=multi", "-cpu", "max,+svm"),
            elf_machine=62,  # EM_X86_64
            modules=("virtio_pci", "virtio_console", "kvm-amd"),
            optional_modules=("msr", "cpuid", "virtio_net"),
        ),
    )
}

# The cloud flavour is a third of the size of the generic one and has all that is needed.
KERNELS = {
    kernel.series: kernel
    for kernel in (
        Kernel(
            "6.12",
            "TSC synchronisation rules as from Linux 6.7 on",
            ("linux-image-6.12-cloud-amd64", "linux-image-6.12-amd64"),
        ),
        Kernel(
            "6.1",
            "TSC synchronisation rules before Linux 6.7",
            ("linux-image-cloud-amd64", "linux-image-amd64"),
        ),
    )
}

DEFAULT_HOST = "x86-svm"
DEFAULT_KERNEL = "6.12"
