"""The hosts that can be emulated and the kernels that run on them: data, no behaviour."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Optional, Tuple

from .architecture import AMD64, ARM64, Architecture


@dataclass(frozen=True)
class Host:
    name: str
    summary: str
    architecture: Architecture
    qemu: str  # program that emulates it
    qemu_package: str
    qemu_arguments: Tuple[str, ...]
    modules: Tuple[str, ...]  # inserted with their dependencies, but for what is built in
    kernel_parameters: str = ""
    qemu_from: Optional[str] = None  # a Debian suite, where the machine's own QEMU is too old
    emulator: str = "QEMU"  # or "Bochs" (bochs.py), which then is what the fields above name
    cpus_max: int = 64
    kernels: Tuple[str, ...] = ()  # the only ones that run on it; empty: any
    boot_seconds_max: Tuple[float, ...] = ()  # of each try; empty: as everywhere under TCG

    def runs(self, kernel: "Kernel") -> bool:
        return not self.kernels or kernel.series in self.kernels


@dataclass(frozen=True)
class Kernel:
    series: str
    summary: str
    suite: str  # of Debian, where it comes from
    meta_packages: Tuple[str, ...]  # in order of preference; each depends on the newest image;
    # {} stands for the architecture
    any_series: bool = False  # whatever series the suite has now, and not the one of the name

    def metas(self, architecture: Architecture) -> Tuple[str, ...]:
        return tuple(meta.format(architecture.debian) for meta in self.meta_packages)


_VIRTIO = ("virtio_pci", "virtio_console")
_ARM64_ARGUMENTS = ("-accel", "tcg,thread=multi", "-M", "virt,virtualization=on,gic-version=3")

HOSTS = {
    host.name: host
    for host in (
        Host(
            name="x86-svm",
            summary="x86-64 with AMD SVM; nested paging, TSC offsets, masterclock; no TSC scaling",
            architecture=AMD64,
            qemu="qemu-system-x86_64",
            qemu_package="qemu-system-x86",
            qemu_arguments=("-accel", "tcg,thread=multi", "-cpu", "max,+svm"),
            modules=(*_VIRTIO, "kvm-amd", "msr", "cpuid"),
        ),
        Host(
            name="arm64-vhe",
            summary="arm64, KVM in EL2 (VHE); counter at 62.5 MHz, no ECV",
            architecture=ARM64,
            qemu="qemu-system-aarch64",
            qemu_package="qemu-system-arm",
            qemu_arguments=(*_ARM64_ARGUMENTS, "-cpu", "neoverse-n1"),
            modules=_VIRTIO,
        ),
        Host(
            name="arm64-nvhe",
            summary="arm64, KVM in EL1 with a stub in EL2 (nVHE); counter at 62.5 MHz, no ECV",
            architecture=ARM64,
            qemu="qemu-system-aarch64",
            qemu_package="qemu-system-arm",
            qemu_arguments=(*_ARM64_ARGUMENTS, "-cpu", "neoverse-n1"),
            modules=_VIRTIO,
            kernel_parameters="kvm-arm.mode=nvhe",
        ),
        Host(
            name="arm64-ecv",
            summary="arm64, VHE, FEAT_ECV with CNTPOFF_EL2; counter at 1 GHz; QEMU 10",
            architecture=ARM64,
            qemu="qemu-system-aarch64",
            qemu_package="qemu-system-arm",
            # Pointer authentication by QEMU's own hash: the architected one is slow to emulate.
            qemu_arguments=(*_ARM64_ARGUMENTS, "-cpu", "max,sve=off,sme=off,pauth-impdef=on"),
            modules=_VIRTIO,
            qemu_from="bookworm-backports",
        ),
        Host(
            name="x86-vmx-scaling",
            summary="x86-64 with Intel VMX and TSC scaling (48 bits), nested too; 1 CPU; slow",
            architecture=AMD64,
            emulator="Bochs",
            qemu="bochs",
            qemu_package="bochs bochs-term seabios isolinux syslinux-common",
            qemu_arguments=(),
            modules=("kvm-intel", "msr", "cpuid"),
            # Whoever panics is to end Bochs: bochs.py. What defends against other guests costs time.
            kernel_parameters="lab_port=/dev/ttyS reboot=triple mitigations=off nokaslr",
            cpus_max=1,
            kernels=("6.12", "6.1"),  # 7.2 panics over this processor's FPU
            boot_seconds_max=(1800.0,),
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
            "bookworm",
            ("linux-image-6.12-cloud-{}", "linux-image-6.12-{}"),
        ),
        Kernel(
            "6.1",
            "TSC synchronisation rules before Linux 6.7",
            "bookworm",
            ("linux-image-cloud-{}", "linux-image-{}"),
        ),
        Kernel(
            "newest",
            "what Debian's unstable suite has; its series (7.2, ...) is a name for it too",
            "unstable",
            ("linux-image-cloud-{}", "linux-image-{}"),
            any_series=True,
        ),
    )
}


def kernel_named(series: str) -> Optional[Kernel]:
    """By its name above, or any other series as one that the unstable suite may have."""
    if series not in KERNELS and re.fullmatch(r"([5-9]|[1-9][0-9])\.[0-9]{1,2}", series):
        return dataclasses.replace(KERNELS["newest"], series=series, any_series=False)
    return KERNELS.get(series)


DEFAULT_HOST = "x86-svm"
DEFAULT_KERNEL = "6.12"
