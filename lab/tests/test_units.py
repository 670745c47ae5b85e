"""Everything that needs no emulated host."""

import contextlib
import dataclasses
import io
import json
import lzma
import os
import pty
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import tty
import unittest
from pathlib import Path
from unittest import mock

LAB = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(LAB))

from continuo_lab import boots, cli, errors, kvm_holder, requirements, terminal  # noqa: E402
from continuo_lab.architecture import AMD64, ARM64  # noqa: E402
from continuo_lab.base_image import RECIPE  # noqa: E402
from continuo_lab.cache import Cache, CachedKernel, Manifest, point  # noqa: E402
from continuo_lab.catalog import HOSTS, KERNELS, kernel_named  # noqa: E402
from continuo_lab.cpio import CpioWriter  # noqa: E402
from continuo_lab.elf import Elf, NotElf  # noqa: E402
from continuo_lab.emulator import Boot, kernel_line, qemu_command  # noqa: E402
from continuo_lab.errors import LabError  # noqa: E402
from continuo_lab.modules import (  # noqa: E402
    ModuleTree,
    decompressed,
    dependencies_in,
    insertion_order,
    module_name,
)
from continuo_lab.newer_qemu import NewerQemu, environment_for, to_unpack  # noqa: E402
from continuo_lab.packages import (  # noqa: E402
    Package,
    installations_in,
    newest_image,
    parts_of,
    series_of,
)
from continuo_lab.payload import (  # noqa: E402
    Payload,
    build_payload,
    build_shell,
    libraries_in,
    program_script,
    split_file_request,
)
from continuo_lab.progress import Progress  # noqa: E402
from continuo_lab.streams import Descriptor, OutputClosed  # noqa: E402

HOST = HOSTS["x86-svm"]
ARM_HOST = HOSTS["arm64-nvhe"]


def elf_with_modinfo(modinfo: bytes, machine: int = 62) -> bytes:
    """The smallest ELF file that has a .modinfo section."""
    names = b"\0.modinfo\0.shstrtab\0"
    body = modinfo + names
    sections = b"".join(
        struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, offset, size, 0, 0, 1, 0)
        for name, kind, offset, size in (
            (0, 0, 0, 0),
            (1, 1, 64, len(modinfo)),
            (10, 3, 64 + len(modinfo), len(names)),
        )
    )
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack(
        "<HHIQQQIHHHHHH", 1, machine, 1, 0, 0, 64 + len(body), 0, 64, 56, 0, 64, 3, 2
    )
    return header + body + sections


class Quoting(unittest.TestCase):
    def shell_sees(self, arguments):
        """What a program gets that the script starts; the script's `cd` leads to a real folder."""
        code = "import os, sys; os.write(1, b'\\0'.join(map(os.fsencode, sys.argv[1:])))"
        dump = [sys.executable, "-c", code]
        script = program_script(Payload([*dump, *arguments], os.getcwd(), HOST))
        done = subprocess.run(["sh"], input=os.fsencode(script), capture_output=True, check=True)
        return done.stdout.split(b"\0")

    def test_every_byte_but_nul_arrives(self):
        nasty = [
            "",
            "a b",
            "it's",
            "'\\''",
            '"$HOME" `id` $(id) *',
            "line\nbreak\n",
            "-n",
            "--",
            os.fsdecode(bytes(range(1, 256))),
        ]
        self.assertEqual(self.shell_sees(nasty), [os.fsencode(text) for text in nasty])

    def test_nul_is_refused(self):
        with self.assertRaises(LabError) as caught:
            build_payload(HOST, ["sh", "a\0b"], [])
        self.assertEqual(caught.exception.exit_code, errors.BAD_REQUEST)


class Cpio(unittest.TestCase):
    def archive(self):
        out = io.BytesIO()
        writer = CpioWriter(out)
        writer.file("/a/b/odd", b"12345", 0o755)
        writer.file("/a/b/empty", b"")
        writer.file("/a/" + os.fsdecode(b"\xff\xfe"), b"x")
        writer.symlink("/a/link", "b/odd")
        writer.character_device("/a/console", 5, 1, 0o600)
        writer.finish()
        return out.getvalue()

    def entries(self, data):
        """An independent reader of the format."""
        at = 0
        found = {}
        while True:
            self.assertEqual(data[at:at + 6], b"070701")
            fields = [int(data[at + 6 + 8 * i:at + 14 + 8 * i], 16) for i in range(13)]
            mode, size, name_size = fields[1], fields[6], fields[11]
            name = data[at + 110:at + 110 + name_size - 1]
            self.assertEqual(data[at + 110 + name_size - 1], 0)
            at += (110 + name_size + 3) & ~3
            content = data[at:at + size]
            at += (size + 3) & ~3
            if name == b"TRAILER!!!":
                self.assertEqual(at, len(data))
                return found
            self.assertNotIn(name, found)
            found[name] = (mode, content, fields[9:11])

    def test_entries(self):
        found = self.entries(self.archive())
        self.assertEqual(found[b"a"][0], 0o040755)
        self.assertEqual(found[b"a/b"][0], 0o040755)
        self.assertEqual(found[b"a/b/odd"], (0o100755, b"12345", [0, 0]))
        self.assertEqual(found[b"a/b/empty"], (0o100644, b"", [0, 0]))
        self.assertEqual(found[b"a/\xff\xfe"][1], b"x")
        self.assertEqual(found[b"a/link"], (0o120777, b"b/odd", [0, 0]))
        self.assertEqual(found[b"a/console"], (0o020600, b"", [5, 1]))
        self.assertLess(list(found).index(b"a"), list(found).index(b"a/b"))

    def test_length_is_a_multiple_of_four_so_that_another_archive_can_follow(self):
        self.assertEqual(len(self.archive()) % 4, 0)

    def test_same_input_same_bytes(self):
        self.assertEqual(self.archive(), self.archive())

    def test_paths_must_be_plain_and_absolute(self):
        for path in ("a", "/a/../b", ""):
            with self.assertRaises(ValueError):
                CpioWriter(io.BytesIO()).file(path, b"")


class Modules(unittest.TestCase):
    def test_names(self):
        self.assertEqual(module_name("kernel/arch/x86/kvm/kvm-amd.ko.xz"), "kvm_amd")
        self.assertEqual(module_name("kvm-amd"), "kvm_amd")

    def test_dependencies(self):
        both = elf_with_modinfo(b"license=GPL\0depends=kvm,irq-bypass\0name=kvm_amd\0")
        self.assertEqual(dependencies_in(both), ["kvm", "irq_bypass"])
        self.assertEqual(dependencies_in(elf_with_modinfo(b"xdepends=no\0depends=\0")), [])
        self.assertEqual(dependencies_in(elf_with_modinfo(b"license=GPL\0")), [])

    def test_order_has_what_is_needed_first_and_each_once(self):
        needs = {"d": ["b", "c"], "b": ["a"], "c": ["a", "b"], "a": [], "e": ["d"]}
        order = insertion_order(["d", "e", "a"], needs.__getitem__)
        self.assertEqual(order, ["a", "b", "c", "d", "e"])

    def test_circle_is_an_error(self):
        needs = {"a": ["b"], "b": ["c"], "c": ["b"]}
        with self.assertRaisesRegex(LabError, "b -> c -> b"):
            insertion_order(["a"], needs.__getitem__)

    def test_tree(self):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            (root / "modules.builtin").write_text("kernel/drivers/virtio/virtio.ko\n")
            (root / "kvm.ko").write_bytes(elf_with_modinfo(b"depends=virtio\0"))
            amd = elf_with_modinfo(b"depends=kvm\0")
            (root / "kvm-amd.ko.xz").write_bytes(lzma.compress(amd))
            tree = ModuleTree(root)
            self.assertEqual(tree.load_list(["virtio", "kvm-amd"]), ["kvm", "kvm_amd"])
            self.assertEqual(tree.content("kvm_amd"), amd)
            self.assertTrue(tree.has("virtio"))
            self.assertFalse(tree.has("ccp"))
            with self.assertRaisesRegex(LabError, "no module ccp"):
                tree.load_list(["ccp"])

    def test_zstd_needs_its_program(self):
        with tempfile.TemporaryDirectory() as folder, mock.patch("shutil.which", lambda _: None):
            path = Path(folder, "m.ko.zst")
            path.write_bytes(b"x")
            with self.assertRaises(LabError) as caught:
                decompressed(path)
        self.assertEqual(caught.exception.exit_code, errors.MACHINE_LACKS)

    def test_hostile_elf_is_refused(self):
        good = elf_with_modinfo(b"depends=kvm\0")
        for size in range(len(good) - 24):  # the last 24 bytes are fields that nobody reads
            with self.assertRaises(NotElf):
                Elf(good[:size]).section(b".modinfo")


class Holder(unittest.TestCase):
    @unittest.skipUnless(os.uname().machine == "x86_64", "the program is x86-64's")
    def test_says_that_it_holds_and_stays(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "hold-kvm")
            path.write_bytes(kvm_holder.elf())
            path.chmod(0o755)
            with subprocess.Popen([str(path)], stdout=subprocess.PIPE) as process:
                self.assertEqual(process.stdout.read(5), b"held\n")
                with self.assertRaises(subprocess.TimeoutExpired):
                    process.wait(0.05)
                process.kill()

    def test_is_a_static_program(self):
        elf = Elf(kvm_holder.elf())
        self.assertEqual(elf.machine, 62)
        self.assertFalse(elf.is_dynamic())


class Resolving(unittest.TestCase):
    CLOUD = (
        "Package: linux-image-6.12-cloud-amd64\nVersion: 6.12.117-1~deb12u1\n"
        "Depends: linux-image-6.12.117+deb12-cloud-amd64 (= 6.12.117-1~deb12u1)\n\n"
        "Package: linux-image-6.12-cloud-amd64\nVersion: 6.12.100-1\n"
        "Depends: linux-image-6.12.100+deb12-cloud-amd64 (= 6.12.100-1)\n\n"
    )

    def test_first_stanza_is_the_candidate(self):
        self.assertEqual(
            newest_image("6.12", "amd64", self.CLOUD),
            Package("linux-image-6.12.117+deb12-cloud-amd64", "6.12.117-1~deb12u1"),
        )

    def test_other_dependencies_and_generic_flavour(self):
        text = "Depends: foo (= 1), linux-image-6.1.0-56-amd64 (= 6.1.192-2), bar\n"
        self.assertEqual(
            newest_image("6.1", "amd64", text), Package("linux-image-6.1.0-56-amd64", "6.1.192-2")
        )

    def test_another_series_is_not_taken(self):
        self.assertIsNone(newest_image("6.1", "amd64", self.CLOUD))  # 6.1 is a prefix of 6.12
        self.assertIsNone(newest_image("6.12", "arm64", self.CLOUD))
        self.assertIsNone(newest_image("6.12", "amd64", ""))
        self.assertIsNone(newest_image("6.12", "amd64", "Package: x\nDescription: y\n"))

    UNSTABLE = (
        "Package: linux-image-cloud-arm64\nVersion: 7.2.13-1\n"
        "Depends: linux-base-cloud-arm64 (= 7.2.13-1), "
        "linux-image-7.2.13+deb14-cloud-arm64 (= 7.2.13-1)\n"
    )

    def test_whatever_series_the_suite_has(self):
        image = Package("linux-image-7.2.13+deb14-cloud-arm64", "7.2.13-1")
        self.assertEqual(newest_image(None, "arm64", self.UNSTABLE), image)
        self.assertEqual(newest_image("7.2", "arm64", self.UNSTABLE), image)
        self.assertIsNone(newest_image("7.1", "arm64", self.UNSTABLE))
        self.assertEqual(series_of(image), "7.2")

    def test_a_kernel_in_several_packages(self):
        image = Package("linux-image-7.2.13+deb14-cloud-arm64", "7.2.13-1")
        text = (
            "Depends: dracut | initramfs-tools (>= 0.120), "
            "linux-base-7.2.13+deb14-cloud-arm64 (= 7.2.13-1), "
            "linux-binary-7.2.13+deb14-cloud-arm64 (= 7.2.13-1), "
            "linux-modules-7.2.13+deb14-cloud-arm64 (= 7.2.13-1)\n"
        )
        parts = [Package(f"linux-{part}-7.2.13+deb14-cloud-arm64", "7.2.13-1")
                 for part in ("base", "binary", "modules")]  # fmt: skip
        self.assertEqual(parts_of(image, text), parts)
        self.assertEqual(parts_of(image, "Depends: kmod, linux-base (>= 4.3)\n"), [image])

    def test_names_of_kernels(self):
        self.assertIs(kernel_named("6.12"), KERNELS["6.12"])
        seven = kernel_named("7.2")
        self.assertEqual((seven.series, seven.suite, seven.any_series), ("7.2", "unstable", False))
        for name in ("2.4", "7", "7.2.13", "all", ""):
            self.assertIsNone(kernel_named(name), name)
        self.assertEqual(
            KERNELS["6.12"].metas(ARM64), ("linux-image-6.12-cloud-arm64", "linux-image-6.12-arm64")
        )


class Hosts(unittest.TestCase):
    def test_a_host_inserts_only_what_the_base_image_carries(self):
        for host in HOSTS.values():
            carried = {*host.architecture.modules, *host.architecture.more_modules}
            self.assertLessEqual(set(host.modules), carried, host.name)

    def test_kernel_line(self):
        self.assertEqual(
            kernel_line(ARM_HOST),
            "console=ttyAMA0 quiet panic=-1 rdinit=/.lab/init cryptomgr.notests kvm-arm.mode=nvhe",
        )
        self.assertTrue(kernel_line(HOST).endswith("tsc=reliable clocksource=tsc maxcpus=1"))

    def test_modules_of_a_host_in_order_and_without_what_is_built_in(self):
        needs = {"irqbypass": [], "kvm": ["irqbypass"], "kvm_amd": ["kvm"], "kvm_intel": ["kvm"],
                 "msr": [], "net_failover": [], "virtio_net": ["net_failover"]}  # fmt: skip
        kernel = CachedKernel(Path(), Manifest(RECIPE, "", "", "6.12.1", needs))
        self.assertEqual(kernel.load_order(HOST), ["irqbypass", "kvm", "kvm_amd", "msr"])
        self.assertEqual(kernel.load_order(ARM_HOST), [])
        self.assertEqual(
            kernel.load_order(ARM_HOST, ("virtio_net",)), ["net_failover", "virtio_net"]
        )

    def test_state_of_each_host_and_kernel(self):
        with tempfile.TemporaryDirectory() as folder:
            progress = Progress(quiet=True)
            cache = Cache(Path(folder), progress)
            kernel = KERNELS["6.12"]

            def state(name):
                row = cli.describe(HOSTS[name], kernel, cache, progress)
                return row["state"], row.get("why")

            with mock.patch.object(cli, "why_missing", lambda *_: ""):
                self.assertEqual(state("arm64-vhe"), (cli.NOT_FETCHED, None))
                Path(folder, "arm64").mkdir()
                Path(folder, "arm64/6.12.failed").write_text("no network\n")
                Path(folder, "qemu").mkdir()
                Path(folder, "qemu/bookworm-backports.failed").write_text("none\n")
                self.assertEqual(state("arm64-vhe"), (cli.NOT_TO_BE_HAD, "no network"))
                self.assertEqual(state("arm64-ecv"), (cli.NOT_TO_BE_HAD, "no network"))
                final = Path(folder, "arm64/image")
                final.mkdir()
                manifest = Manifest(RECIPE, "p", "1", "6.12.1", {})
                (final / "manifest.json").write_text(json.dumps(manifest.__dict__))
                point(Path(folder, "arm64/6.12"), "image")
                self.assertEqual(state("arm64-vhe"), (cli.CACHED, None))
                self.assertEqual(state("arm64-ecv"), (cli.NOT_TO_BE_HAD, "none"))
            with mock.patch.object(cli, "why_missing", lambda *_: "QEMU is missing"):
                self.assertEqual(state("arm64-vhe"), (cli.NOT_TO_BE_HAD, "QEMU is missing"))


class QemuOfAnotherSuite(unittest.TestCase):
    SIMULATION = (
        "NOTE: This is only a simulation!\n"
        "Inst libc6 (2.36-9 Debian:12/oldstable [amd64]) []\n"
        "Inst libfdt1 (1.6.1-4+b1 Debian:12/oldstable [amd64])\n"
        "Inst libgone (1 Debian:12/oldstable [amd64])\n"
        "Inst qemu-system-data [1:7.2] (1:10.0.2 Debian Backports:oldstable-backports [all])\n"
        "Inst qemu-system-arm [1:7.2] (1:10.0.2 Debian Backports:oldstable-backports [amd64])\n"
        "Conf libfdt1 (1.6.1-4+b1 Debian:12/oldstable [amd64])\n"
    )
    QEMU = Package("qemu-system-arm", "1:10.0.2")

    def test_what_is_unpacked(self):
        needed = installations_in(self.SIMULATION)
        self.assertEqual(needed[0], Package("libc6", "2.36-9"))
        self.assertEqual(needed[-1], self.QEMU)
        installed = {"libfdt1", "qemu-system-arm"}
        with mock.patch("continuo_lab.newer_qemu.is_installed", installed.__contains__):
            names = [package.name for package in to_unpack(needed, self.QEMU)]
        self.assertEqual(names, ["libgone", "qemu-system-data", "qemu-system-arm"])

    def fetch(self, folder, script):
        """With an archive whose QEMU is a shell script."""

        def unpack(deb, tree):
            program = tree / "usr/bin/qemu-system-aarch64"
            program.parent.mkdir(parents=True, exist_ok=True)
            program.write_text(script)
            program.chmod(0o755)
            library = tree / "usr/lib/x/libgone.so.1"
            library.parent.mkdir(parents=True, exist_ok=True)
            library.write_text("")

        def download(packages, where):
            return [Path(where, package.name + ".deb") for package in packages]

        apt = mock.Mock()
        apt.closure.return_value = [self.QEMU]
        apt.download.side_effect = download
        newer = NewerQemu(Cache(Path(folder), Progress(quiet=True)), Progress(quiet=True))
        with mock.patch.multiple(
            "continuo_lab.newer_qemu", archive=lambda *_: apt, unpack=unpack
        ):
            return newer, newer.find_or_fetch(HOSTS["arm64-ecv"])

    def test_is_found_again_with_its_libraries(self):
        with tempfile.TemporaryDirectory() as folder:
            newer, qemu = self.fetch(folder, "#!/bin/sh\nexit 0\n")
            self.assertEqual(newer.find(HOSTS["arm64-ecv"]), qemu)
            self.assertEqual(qemu.version, "1:10.0.2")
            tree = Path(folder, "qemu/qemu-system-arm_1%3A10.0.2")
            self.assertEqual(qemu.environment, {"LD_LIBRARY_PATH": str(tree / "usr/lib/x")})
            for part in qemu.environment["LD_LIBRARY_PATH"].split(":"):
                self.assertTrue(Path(part).is_dir(), "a colon in a folder's name ends it there")
            self.assertEqual(environment_for(tree / "usr/bin"), {})

    def test_one_that_does_not_start_is_refused_and_the_reason_kept(self):
        with tempfile.TemporaryDirectory() as folder:
            with self.assertRaisesRegex(LabError, "arm64-ecv cannot be emulated") as caught:
                self.fetch(folder, "#!/bin/sh\necho no libodd >&2; exit 127\n")
            self.assertEqual(caught.exception.exit_code, errors.FETCH_FAILED)
            newer = NewerQemu(Cache(Path(folder), Progress()), Progress())
            self.assertIsNone(newer.find(HOSTS["arm64-ecv"]))
            self.assertIn("no libodd", newer.why_not(HOSTS["arm64-ecv"]))


class Libraries(unittest.TestCase):
    def test_paths(self):
        text = (
            "\tlinux-vdso.so.1 (0x00007ffd5d3d6000)\n"
            "\tlibfmt.so.9 => /lib/x86_64-linux-gnu/libfmt.so.9 (0x00007f0000000000)\n"
            "\tlibodd.so => /opt/a b/libodd.so (0x00007f0000000000)\n"
            "\t/lib64/ld-linux-x86-64.so.2 (0x00007f0000000000)\n"
        )
        self.assertEqual(
            libraries_in(text, "p"),
            [
                "/lib/x86_64-linux-gnu/libfmt.so.9",
                "/opt/a b/libodd.so",
                "/lib64/ld-linux-x86-64.so.2",
            ],
        )

    def test_missing_library_is_named(self):
        with self.assertRaisesRegex(LabError, "libnone.so.3") as caught:
            libraries_in("\tlibnone.so.3 => not found\n", "p")
        self.assertEqual(caught.exception.exit_code, errors.NOT_EXECUTABLE)


class Payloads(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory()
        self.addCleanup(self.scratch.cleanup)
        self.root = Path(self.scratch.name)

    def refusal(self, command, files=()):
        with self.assertRaises(LabError) as caught:
            build_payload(HOST, command, files)
        return caught.exception

    def test_file_requests(self):
        colon = self.root / "a:b"
        colon.write_text("")
        self.assertEqual(split_file_request("x"), (Path("x"), "x"))
        self.assertEqual(split_file_request("x:/y"), (Path("x"), "/y"))
        self.assertEqual(split_file_request("d/x:/y/"), (Path("d/x"), "/y/x"))
        self.assertEqual(split_file_request(str(colon)), (colon, str(colon)))
        with self.assertRaises(LabError):
            split_file_request("x:")

    def test_not_found(self):
        self.assertEqual(self.refusal([f"{self.root}/none"]).exit_code, errors.NOT_FOUND)
        self.assertEqual(self.refusal(["no-such-program-anywhere"]).exit_code, errors.NOT_FOUND)

    def test_not_executable(self):
        program = self.root / "p"
        for content, mode, why in (
            (b"\x7fELF", 0o644, "not executable"),
            (b"text", 0o755, "no program"),
            (b"#!/usr/bin/python3\n", 0o755, "script for /usr/bin/python3"),
            (elf_with_modinfo(b"", machine=ARM64.elf_machine), 0o755, "another machine"),
        ):
            program.write_bytes(content)
            program.chmod(mode)
            if why == "not executable" and os.access(program, os.X_OK):
                continue
            refusal = self.refusal([str(program)])
            self.assertEqual(refusal.exit_code, errors.NOT_EXECUTABLE)
            self.assertRegex(str(refusal), why)

    def test_a_program_for_another_architecture_names_the_way_out(self):
        program = self.root / "p"
        program.write_bytes(elf_with_modinfo(b""))
        program.chmod(0o755)
        with self.assertRaises(LabError) as caught:
            build_payload(ARM_HOST, [str(program)], [])
        self.assertEqual(caught.exception.exit_code, errors.NOT_EXECUTABLE)
        self.assertIn("make arm64", caught.exception.next_step)
        with mock.patch("continuo_lab.payload._REPOSITORY", self.root):
            with self.assertRaises(LabError) as caught:
                build_payload(ARM_HOST, ["gcc"], [])
            self.assertEqual(caught.exception.exit_code, errors.NOT_FOUND)
            self.assertIn("make arm64", caught.exception.next_step)
            built = self.root / "build-arm64/continuo"
            built.parent.mkdir()
            built.write_bytes(elf_with_modinfo(b"", machine=ARM64.elf_machine))
            built.chmod(0o755)
            payload = build_payload(ARM_HOST, ["continuo", "doctor"], [])
        self.assertEqual(payload.arguments, [str(built), "doctor"])

    def test_a_foreign_program_must_be_static(self):
        program = self.root / "p"
        header = bytearray(elf_with_modinfo(b"", machine=ARM64.elf_machine))
        header[32:40] = struct.pack("<Q", len(header))  # one program header, PT_INTERP
        header[56:58] = struct.pack("<H", 1)
        program.write_bytes(bytes(header) + struct.pack("<I", 3) + bytes(52))
        program.chmod(0o755)
        with mock.patch("platform.machine", lambda: "x86_64"):
            with self.assertRaisesRegex(LabError, "shared libraries for arm64"):
                build_payload(ARM_HOST, [str(program)], [])

    def test_the_hosts_own_folders_are_not_overwritten(self):
        file = self.root / "f"
        file.write_text("")
        for place in ("/dev/x", "/.lab/init", "/a/../proc/x"):
            refusal = self.refusal(["sh"], [f"{file}:{place}"])
            self.assertEqual(refusal.exit_code, errors.BAD_REQUEST)

    def test_dynamic_program_brings_its_loader_and_libc(self):
        payload = build_payload(HOST, ["/usr/bin/od"], [])
        names = {os.path.basename(path) for path in payload._files}
        self.assertLessEqual({"od", "libc.so.6", "ld-linux-x86-64.so.2"}, names)

    def test_folder_with_all_below(self):
        (self.root / "d/e").mkdir(parents=True)
        (self.root / "d/e/f").write_text("1")
        payload = build_payload(HOST, ["sh"], [f"{self.root}/d:/data"])
        self.assertEqual(list(payload._files), ["/data/e/f"])
        (self.root / "d/loop").symlink_to(self.root / "d")
        refusal = self.refusal(["sh"], [f"{self.root}/d"])
        self.assertRegex(str(refusal), "link to a folder")


class CacheFolder(unittest.TestCase):
    def test_half_a_cache_is_no_cache(self):
        with tempfile.TemporaryDirectory() as folder:
            cache = Cache(Path(folder), Progress(quiet=True))
            kernel = KERNELS["6.12"]
            self.assertIsNone(cache.find(HOST, kernel))
            final = Path(folder, HOST.architecture.debian, "image")
            final.mkdir(parents=True)
            recipe = f'{{"recipe": {RECIPE}, "package": "", "version": "", "release": "", '
            point(final.parent / kernel.series, "image")
            self.assertIsNone(cache.find(HOST, kernel))
            manifest = final / "manifest.json"
            for text in ("", recipe, recipe + '"unknown": 2, "modules": {}}'):
                manifest.write_text(text)
                self.assertIsNone(cache.find(HOST, kernel), text)
            manifest.write_text(recipe + '"modules": {}}')
            self.assertIsNotNone(cache.find(HOST, kernel))
            manifest.write_text(recipe.replace(str(RECIPE), "0") + '"modules": {}}')
            self.assertIsNone(cache.find(HOST, kernel), "made by another version of the tool")

    def test_link_moves(self):
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder, "6.12")
            for target in ("old", "new"):
                point(link, target)
                self.assertEqual(os.readlink(link), target)
            self.assertEqual(os.listdir(folder), ["6.12"])

    def test_a_fetch_that_fails_leaves_nothing_and_says_why(self):
        broken = LabError(errors.FETCH_FAILED, "no network")
        apt = mock.Mock(what="lists")
        apt.show.return_value = Resolving.CLOUD
        apt.download.side_effect = broken
        with tempfile.TemporaryDirectory() as folder:
            cache = Cache(Path(folder), Progress(quiet=True))
            with mock.patch("continuo_lab.cache.sources", lambda *_: iter([apt])):
                with self.assertRaisesRegex(LabError, "no network") as caught:
                    cache.find_or_fetch(HOST, KERNELS["6.12"])
            self.assertEqual(caught.exception.exit_code, errors.FETCH_FAILED)
            self.assertEqual(os.listdir(Path(folder, "amd64")), ["6.12.failed"])
            self.assertIn("no network", cache.why_not(HOST, KERNELS["6.12"]))

    def test_the_next_flavour_is_taken_where_the_first_lacks_kvm(self):
        def download(packages, folder):
            return [Path(folder, package.name + ".deb") for package in packages]

        def unpack(deb, tree):
            release = deb.stem[len("linux-image-"):]
            (tree / "boot").mkdir(parents=True)
            options = "CONFIG_SERIAL_8250_CONSOLE=y\nCONFIG_DEVTMPFS=y\nCONFIG_BLK_DEV_INITRD=y\n"
            (tree / f"boot/config-{release}").write_text(options)
            (tree / f"boot/vmlinuz-{release}").write_bytes(b"kernel")
            modules = tree / "lib/modules" / release / "kernel"
            modules.mkdir(parents=True)
            present = set(AMD64.modules) - ({"kvm-amd"} if "cloud" in release else set())
            for name in present:
                (modules / f"{name}.ko").write_bytes(elf_with_modinfo(b"depends=\0"))

        apt = mock.Mock(what="lists")
        apt.show.side_effect = lambda meta: "" if "+" in meta else Resolving.CLOUD.replace(
            "cloud-amd64", "cloud-amd64" if "cloud" in meta else "amd64"
        )
        apt.download.side_effect = download
        with tempfile.TemporaryDirectory() as folder, mock.patch.multiple(
            "continuo_lab.cache",
            sources=lambda *_: iter([apt]),
            unpack=unpack,
            write_base=lambda out, _, modules, *__: out.write(repr(modules).encode()),
        ):
            cache = Cache(Path(folder), Progress(quiet=True))
            kernel = cache.find_or_fetch(HOST, KERNELS["6.12"])
            self.assertEqual(kernel.manifest.release, "6.12.117+deb12-amd64")
            self.assertEqual(kernel.vmlinuz.read_bytes(), b"kernel")
            self.assertEqual(cache.find_or_fetch(HOST, KERNELS["6.12"]), kernel)
            self.assertEqual(apt.download.call_count, 2)

    def test_what_a_killed_fetch_left_is_removed(self):
        with tempfile.TemporaryDirectory() as folder:
            partial = Path(folder, "amd64", ".partial-x")
            partial.mkdir(parents=True)
            cache = Cache(Path(folder), Progress(quiet=True))
            with cache.lock():
                self.assertFalse(partial.exists())


class Requirements(unittest.TestCase):
    def test_not_root_prints_the_command(self):
        with mock.patch("shutil.which", lambda _: None), mock.patch("os.geteuid", lambda: 1000):
            with self.assertRaises(LabError) as caught:
                requirements.require_program("qemu-x", "qemu-x-package", Progress(quiet=True))
        self.assertEqual(caught.exception.exit_code, errors.MACHINE_LACKS)
        self.assertIn("sudo apt-get install", caught.exception.next_step)
        self.assertIn("qemu-x-package", caught.exception.next_step)

    def test_root_installs_and_uses_it(self):
        installed = []

        def which(name):
            return f"/usr/bin/{name}" if name == "apt-get" or installed else None

        def apt(command):
            installed.append(command[-1])
            return True

        with mock.patch("shutil.which", which), mock.patch("os.geteuid", lambda: 0):
            with mock.patch.object(requirements, "_apt", apt):
                path = requirements.require_program("qemu-x", "package", Progress(quiet=True))
        self.assertEqual((path, installed), ("/usr/bin/qemu-x", ["package"]))


class Streams(unittest.TestCase):
    def test_slow_reader_loses_nothing(self):
        reader, writer = os.pipe()
        sink = Descriptor(writer)
        data = os.urandom(1 << 20)  # more than the pipe holds: a put that blocks would hang here
        sink.put(data)
        got = bytearray()
        while len(got) < len(data):
            got += os.read(reader, 1 << 16)
        sink.finish()
        self.assertEqual(bytes(got), data)
        os.close(reader)
        os.close(writer)

    def test_non_blocking_descriptor(self):
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        sink = Descriptor(writer)
        data = os.urandom(1 << 18)
        sink.put(data)
        got = bytearray()
        while len(got) < len(data):
            got += os.read(reader, 1 << 16)
        sink.finish()
        self.assertEqual(bytes(got), data)
        os.close(reader)
        os.close(writer)

    def test_closed_reader_is_told(self):
        reader, writer = os.pipe()
        os.close(reader)
        sink = Descriptor(writer)
        sink.put(b"x")
        with self.assertRaises(OutputClosed):
            sink.finish()
        os.close(writer)


FAKE_QEMU = """#!/bin/sh
# Does in its Nth start what the Nth line of the script beside it says.
for argument; do
    case $argument in
    file,id=stdout,*) out=${argument##*=} ;;
    file,id=status,*) status=${argument##*=} ;;
    esac
done
echo start >>"$0.starts"
eval "$(sed -n "$(wc -l <"$0.starts")p" "$0.script")"
"""


class Boots(unittest.TestCase):
    """With a program in QEMU's place that loses its first boots in each of the ways there are."""

    def run_all(self, *script, seconds_max=(0.3, 0.3, 10.0)):
        """(what _until_up returned or raised, number of starts, stderr)"""
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            qemu = Path(folder, "qemu")
            qemu.write_text(FAKE_QEMU)
            qemu.chmod(0o755)
            Path(folder, "qemu.script").write_text("\n".join(script) + "\n")
            image = stack.enter_context(open(qemu, "rb"))
            kernel = mock.Mock()
            kernel.manifest.release = "6"
            stack.enter_context(mock.patch.dict(os.environ, CONTINUO_LAB_CACHE=folder))
            stack.enter_context(mock.patch.object(cli, "BOOT_SECONDS_MAX", seconds_max))
            said = stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            boot = Boot(HOST, str(qemu), qemu, image, 1, 256, 5.0, 0.0)
            try:
                result = cli._until_up(boot, kernel, True, Progress(quiet=True))
            except LabError as error:
                result = error
            starts = Path(folder, "qemu.starts").read_text().count("start")
            return result, starts, said.getvalue()

    UP = 'echo "up 1" >"$status"; echo on >"$out"; '

    def test_a_boot_that_was_lost_is_repeated_and_told_of_even_by_a_quiet_one(self):
        result, starts, said = self.run_all(
            "exit 0", 'kill -ABRT "$$"', self.UP + 'echo "exit 7" >"$status"'
        )
        outcome, sinks, boots = result
        self.assertEqual((outcome.exit_code, boots, starts), (7, 3, 3))
        self.assertEqual(bytes(sinks[0].content), b"on\n")
        self.assertIn("boot 1 failed, nothing was run, booting again", said)
        self.assertIn("boot 2 failed", said)
        self.assertEqual(said.count("console's log:"), 2)

    def test_one_that_hangs_too(self):
        result, starts, said = self.run_all("exec sleep 60", self.UP + 'echo "exit 0" >"$status"')
        self.assertEqual((result[2], starts), (2, 2))
        self.assertIn("did not come up within 0.3 s", said)

    def test_three_are_enough(self):
        error, starts, _ = self.run_all("exit 0", "exit 0", "exit 0", self.UP)
        self.assertEqual((error.exit_code, starts), (errors.HOST_NEVER_UP, 3))
        self.assertIn("boot 3, and the last", str(error))

    def test_what_began_is_never_run_again(self):
        error, starts, _ = self.run_all(self.UP + "exit 0", self.UP)
        self.assertEqual((error.exit_code, starts), (errors.HOST_DIED, 1))

    def test_a_refusal_is_no_accident(self):
        error, starts, _ = self.run_all("echo no such CPU >&2; exit 1")
        self.assertIn("it refused (QEMU ended with 1: no such CPU)", str(error))
        self.assertEqual((error.exit_code, starts), (errors.HOST_NEVER_UP, 1))
        error, starts, _ = self.run_all('echo "fail no /dev/kvm" >"$status"')
        self.assertEqual((error.exit_code, starts), (errors.HOST_NEVER_UP, 1))


class Clocks(unittest.TestCase):
    def test_the_kernel_is_told_its_tsc(self):
        with mock.patch.object(boots, "machine_tsc_khz", lambda: 2_500_000):
            told = boots.kernel_parameters(HOST, 250, False, ["a=1", "b"])
            self.assertEqual(told, "tsc_early_khz=2500000 lpj=10000000 a=1 b")
            told = boots.kernel_parameters(HOST, None, True, [])
            self.assertEqual(told, "tsc_early_khz=1000000")
            self.assertEqual(boots.kernel_parameters(ARM_HOST, 250, False, ["a"]), "a")
            bochs = HOSTS["x86-vmx-scaling"]
            self.assertEqual(boots.kernel_parameters(bochs, 250, False, []), "")
        with mock.patch.object(boots, "machine_tsc_khz", lambda: None):
            self.assertEqual(boots.kernel_parameters(HOST, 250, False, []), "")

    def test_the_tick_is_read_from_the_kernels_configuration(self):
        with tempfile.TemporaryDirectory() as folder:
            kernel = CachedKernel(Path(folder), mock.Mock())
            for text, tick_hz in (("CONFIG_HZ_250=y\nCONFIG_HZ=250\n", 250), ("", None)):
                Path(folder, "config").write_text(text)
                self.assertEqual(kernel.tick_hz, tick_hz)

    def test_icount_takes_one_thread(self):
        for host in (host for host in HOSTS.values() if host.emulator == "QEMU"):
            words = boots.with_icount(host, "3,sleep=off").qemu_arguments
            self.assertIn("tcg,thread=single", words)
            self.assertEqual(words[-2:], ("-icount", "shift=3,sleep=off"))

    def test_realtime_offset(self):
        self.assertEqual(boots.clock_arguments(False, 0), ())
        with mock.patch("time.time", lambda: 1_000_000_000.9):
            self.assertEqual(
                boots.clock_arguments(False, -7), ("-rtc", "base=2001-09-09T01:46:33")
            )
            self.assertEqual(
                boots.clock_arguments(True, 0),
                ("-rtc", "base=2001-09-09T01:46:40,clock=vm", "-seed", "1"),
            )


class Shells(unittest.TestCase):
    def test_what_comes_in_reaches_the_port_once_the_host_is_up_and_ends(self):
        reader, writer = os.pipe()
        with terminal.Commands(reader) as commands:
            port = socket.socket(fileno=os.dup(commands.descriptor))
            port.setblocking(False)
            os.write(writer, b"echo 1\n")
            with self.assertRaises(BlockingIOError):
                port.recv(1)
            port.setblocking(True)
            commands.start()
            self.assertEqual(port.recv(100), b"echo 1\n")
            os.close(writer)
            self.assertEqual(port.recv(100), b"")
            self.assertIn(f"socket,id=stdin,fd={commands.descriptor}", commands.qemu_arguments())
            port.close()
        os.close(reader)

    def test_the_terminal_is_as_it_was(self):
        master, slave = pty.openpty()
        before = termios.tcgetattr(slave)
        with terminal.terminal_kept(slave):
            tty.setraw(slave)
            self.assertNotEqual(termios.tcgetattr(slave), before)
        self.assertEqual(termios.tcgetattr(slave), before)
        os.close(master)
        os.close(slave)

    def test_our_programs_go_along_and_are_on_the_path(self):
        with tempfile.TemporaryDirectory() as folder:
            built = Path(folder, "build-arm64")
            built.mkdir()
            for name in ("continuo", "continuo_kvm_test", "continuo_decode_fuzz", "other"):
                (built / name).write_text("")
                (built / name).chmod(0o755)
            (built / "continuo.json").write_text("")
            (built / "continuo.json").chmod(0o644)
            with mock.patch("continuo_lab.payload._REPOSITORY", Path(folder)):
                here = build_shell(ARM_HOST, False, [])
                there = build_shell(ARM_HOST, True, [])
            names = [Path(path).name for path in here._files]
            self.assertEqual(names, ["continuo", "continuo_kvm_test"])
            script = program_script(here).splitlines()
            self.assertIn(f"PATH={built}:/usr/local/sbin", "\n".join(script))
            self.assertEqual(script[-1], "exec /.lab/bin/sh -c 'exec sh </dev/vport0p4'")
            self.assertIn("setsid -c sh -i </dev/ttyAMA0", program_script(there))

    def test_the_console_is_the_terminal(self):
        with tempfile.TemporaryFile() as image:
            boot = Boot(HOST, "qemu", Path("k"), image, 1, 256, 0.0, 1.0)
            ports = {"stdout": 7, "stderr": 8, "status": 9}
            self.assertIn("file,id=console,path=/dev/fd/6", qemu_command(boot, ports, 6))
            boot = dataclasses.replace(boot, terminal=True)
            words = [word for word in qemu_command(boot, ports, 6) if word.startswith("stdio")]
            self.assertEqual(words, ["stdio,id=console,mux=on,signal=off,logfile=/dev/fd/6"])


class CommandLine(unittest.TestCase):
    def run_tool(self, *arguments):
        with tempfile.TemporaryDirectory() as folder:
            return subprocess.run(
                [str(LAB / "continuo-lab"), *arguments],
                env={**os.environ, "CONTINUO_LAB_CACHE": folder},
                capture_output=True,
                text=True,
                check=False,
            )

    def test_bad_requests_have_their_own_code_and_say_what_to_do(self):
        for arguments in (
            ["run"],
            ["run", "--"],
            ["run", "--smp", "0", "--", "sh"],
            ["run", "--timeout", "nan", "--", "sh"],
            ["run", "--kernel", "2.4", "--", "sh"],
            ["run", "--icount", "11", "--", "sh"],
            ["run", "--realtime-offset", "soon", "--", "sh"],
            ["run", "--host", "arm", "--", "sh"],
            ["up", "--", "sh"],
            ["up", "--host", "x86-vmx-scaling"],
            ["run", "--host", "x86-vmx-scaling", "--icount", "3", "--", "sh"],
            ["list", "--", "sh"],
            ["walk"],
        ):
            done = self.run_tool(*arguments)
            self.assertEqual(done.returncode, errors.BAD_REQUEST, arguments)
            self.assertIn("continuo-lab: error:", done.stderr)
            self.assertEqual(done.stdout, "")

    def test_too_large_for_the_memory(self):
        with tempfile.NamedTemporaryFile() as large:
            large.truncate(512 << 20)
            done = self.run_tool("run", "--file", large.name, "--", "sh")
        self.assertEqual(done.returncode, errors.BAD_REQUEST)
        self.assertIn("--memory", done.stderr)

    def test_list_of_an_empty_cache(self):
        listed = json.loads(self.run_tool("list", "--json").stdout)
        rows = [(row["host"], row["kernel"]) for row in listed["kernels"]]
        self.assertEqual(rows, [(host, kernel) for host in HOSTS for kernel in KERNELS])
        self.assertNotIn(cli.CACHED, [row["state"] for row in listed["kernels"]])
        text = self.run_tool("list", "--host", "arm64-vhe").stdout
        self.assertIn("arm64-vhe  newest  not", text)
        self.assertNotIn("x86-svm", text)

    def test_only_the_first_dashes_are_ours(self):
        self.assertEqual(cli._split(["run", "--", "p", "--", "x"]), (["run"], ["p", "--", "x"]))


if __name__ == "__main__":
    unittest.main()
