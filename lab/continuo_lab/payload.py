"""What a run adds to the base image: the program, its libraries, its files, and its command line.

Everything keeps the path that it has on the machine, and the program starts in the folder from
which the tool was started, so a command line means the same inside as outside.
"""

import os
import re
import shlex
import shutil
import stat
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Dict, List, Sequence, Tuple

from .catalog import Host
from .cpio import CpioWriter
from .elf import Elf, NotElf
from .errors import BAD_REQUEST, NOT_EXECUTABLE, NOT_FOUND, LabError

_OWN_FOLDERS = ("/.lab", "/proc", "/sys", "/dev")  # the host's: nothing can be placed there
_REPOSITORY = Path(__file__).resolve().parents[2]
_GUEST_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/.lab/bin"
PROLOGUE_DESCRIPTOR = 4  # may be left open by the prologue for the epilogue; not the program's


@dataclass
class Payload:
    """Files by their absolute path inside."""

    arguments: List[str]  # of the program, itself first, exactly as asked for
    folder: str  # where the program starts
    host: Host
    # Lines of shell before and after the program; PATH is /.lab/bin before it, $code its exit code
    # after it.
    prologue: Tuple[str, ...] = ()
    epilogue: Tuple[str, ...] = ()
    further_path: str = ""  # a folder that PATH has first
    _files: Dict[str, Path] = field(default_factory=dict)

    def place(self, source: Path, destination: str) -> None:
        """A file, with the libraries that it needs, or a folder with all that is below it."""
        if source.is_dir():
            for below, folders, names in os.walk(source):
                folders.sort()
                _refuse_links(below, folders)
                for name in sorted(names):
                    path = Path(below, name)
                    inside = os.path.join(destination, os.path.relpath(path, source))
                    self._place_file(path, inside)
        else:
            self._place_file(source, destination)

    def size(self) -> int:
        return sum(source.stat().st_size for source in self._files.values())

    def write(self, out: BinaryIO, modules: Sequence[str]) -> None:
        """`modules` are to be inserted, in this order."""
        archive = CpioWriter(out)
        archive.file("/.lab/modules/order", "".join(f"{name}\n" for name in modules).encode())
        archive.file("/.lab/program", program_script(self).encode("utf-8", "surrogateescape"))
        for inside, source in sorted(self._files.items()):
            archive.file(inside, source.read_bytes(), stat.S_IMODE(source.stat().st_mode))
        archive.directory(self.folder)
        archive.finish()

    def _place_file(self, source: Path, destination: str) -> None:
        inside = os.path.normpath(os.path.join(self.folder, destination))
        if _is_the_hosts_own(inside):
            raise LabError(
                BAD_REQUEST,
                f"{inside} belongs to the emulated host: nothing can be placed there",
                f"give another place: --file {source}:/data/{source.name}",
            )
        if not source.exists():
            raise LabError(BAD_REQUEST, f"{source} does not exist", "check the path after --file")
        if not source.is_file():
            raise LabError(BAD_REQUEST, f"{source} is not a regular file")
        if not os.access(source, os.R_OK):
            raise LabError(BAD_REQUEST, f"{source} cannot be read")
        if inside in self._files:
            return
        self._files[inside] = source
        for library in shared_libraries(source, self.host):
            self._files.setdefault(library, Path(library))


def _is_the_hosts_own(path: str) -> bool:
    return any(path == own or path.startswith(own + "/") for own in _OWN_FOLDERS)


def program_script(payload: Payload) -> str:
    """The shell script that becomes the program: single quotes keep every byte as it is."""
    program = " ".join(shlex.quote(argument) for argument in payload.arguments)
    return "\n".join(
        (
            "export HOME=/root TERM=dumb LANG=C.UTF-8",
            f"export CONTINUO_LAB_HOST={shlex.quote(payload.host.name)}",
            *payload.prologue,
            f"cd {shlex.quote(payload.folder)} || exit 126",
            f"PATH={_search_path(payload)}",
            *_run_and_then(program, payload.epilogue),
            "",
        )
    )


def _search_path(payload: Payload) -> str:
    return f"{shlex.quote(payload.further_path)}:{_GUEST_PATH}".lstrip(":")


def _run_and_then(program: str, epilogue: Sequence[str]) -> Sequence[str]:
    if not epilogue:
        return (f"exec {program}",)
    return (f"{program} {PROLOGUE_DESCRIPTOR}>&-", "code=$?", *epilogue, "exit $code")


def build_payload(host: Host, command: Sequence[str], files: Sequence[str]) -> Payload:
    payload = _without_files(host, command)
    program = _find_program(command[0], host)
    if program is not None:
        source, inside = program
        _check_runnable(source, host)
        payload.place(source, inside)
        if "/" not in command[0]:
            payload.arguments[0] = inside
    _place_all(payload, files)
    return payload


def build_shell(host: Host, terminal: bool, files: Sequence[str]) -> Payload:
    """A shell: an interactive one on the console where there is a terminal, else one that reads
    what comes through port 4. Our programs are on its PATH."""
    console = f"/dev/{host.architecture.console}"
    how = f"setsid -c sh -i <{console} >{console} 2>&1" if terminal else "sh </dev/vport0p4"
    payload = _without_files(host, ["/.lab/bin/sh", "-c", f"exec {how}"])
    payload.prologue = _terminal_settings(host, console) if terminal else ()
    folder = _REPOSITORY / host.architecture.build_folder
    payload.further_path = str(folder)
    for program in our_programs(folder):
        payload.place(program, str(program))
    _place_all(payload, files)
    return payload


def _terminal_settings(host: Host, console: str) -> Tuple[str, ...]:
    prompt = shlex.quote(f"{host.name}:$PWD# ")
    size = shutil.get_terminal_size()
    return (
        f"export PS1={prompt} TERM=vt102",
        f"stty rows {size.lines} columns {size.columns} <{console}",
    )


def our_programs(folder: Path) -> List[Path]:
    """Those that are of use in a shell inside; fuzzers are large and nothing there needs them."""
    left_out = ("_fuzz", "_replay", "_seeds")
    return [
        path for path in sorted(folder.glob("continuo*"))
        if path.is_file() and os.access(path, os.X_OK) and not path.name.endswith(left_out)
    ]  # fmt: skip


def _without_files(host: Host, command: Sequence[str]) -> Payload:
    for argument in command:
        if "\0" in argument:
            raise LabError(BAD_REQUEST, "an argument has a NUL byte in it")
    payload = Payload(list(command), os.getcwd(), host)
    if _is_the_hosts_own(payload.folder):
        raise LabError(
            BAD_REQUEST,
            f"the program cannot start in {payload.folder}: that belongs to the emulated host",
            "change to another folder first",
        )
    return payload


def _place_all(payload: Payload, files: Sequence[str]) -> None:
    for request in files:
        source, destination = split_file_request(request)
        payload.place(source, destination)


def split_file_request(request: str) -> Tuple[Path, str]:
    """`SRC[:DEST]`; a SRC that exists with its colons has no DEST; `DIR/` keeps SRC's name."""
    source, colon, destination = request.rpartition(":")
    if not colon or not source or os.path.lexists(request):
        source, destination = request, request
    elif not destination:
        raise LabError(BAD_REQUEST, f"--file {request}: nothing stands after the colon")
    elif destination.endswith("/"):
        destination += os.path.basename(source.rstrip("/"))
    return Path(source), destination


def _find_program(name: str, host: Host):
    """(source, path inside), or None where busybox inside is to run it."""
    architecture = host.architecture
    if "/" in name:
        path = Path(name)
        if not path.exists():
            hint = "check the path"
            if name.startswith("build"):
                hint = f"build it first: {architecture.make_target}"
            raise LabError(NOT_FOUND, f"there is no program {name}", hint)
        return path, name
    folder = _REPOSITORY / architecture.build_folder
    built = folder / name
    if built.is_file():
        return built, str(built)
    if name in _applet_names():
        return None
    found = shutil.which(name) if architecture.is_native() else None
    if found is None:
        path = "not in PATH" if architecture.is_native() else "and PATH's are for another machine"
        raise LabError(
            NOT_FOUND,
            f"there is no program {name}: not in {folder}, not in busybox, {path}",
            f"build it first ({architecture.make_target}), or give its path",
        )
    return Path(found), found


def _applet_names() -> Sequence[str]:
    """What is of use to look around; everything else of busybox is there for scripts."""
    return (
        "sh ash busybox cat cp date dd df dmesg echo env false find free grep head hexdump id ip "
        "kill ls lsmod md5sum mkdir mount mv od printf ps pwd rm sed seq sha256sum sleep sort "
        "stat tail test top true uname uptime wc which"
    ).split()


def _check_runnable(source: Path, host: Host) -> None:
    if source.is_dir() or not os.access(source, os.X_OK):
        raise LabError(NOT_EXECUTABLE, f"{source} is not executable", f"chmod +x {source}")
    with open(source, "rb") as file:
        head = file.read(256)
    if head.startswith(b"#!"):
        interpreter = head[2:].split(b"\n", 1)[0].split()[:1]
        if interpreter not in ([b"/bin/sh"], [b"/.lab/bin/sh"]):
            raise LabError(
                NOT_EXECUTABLE,
                f"{source} is a script for {b''.join(interpreter).decode(errors='replace')}, "
                "and inside is only /bin/sh (busybox)",
                "give a compiled program, or a script for /bin/sh",
            )
        return
    try:
        machine = Elf(source.read_bytes()).machine
    except NotElf as error:
        raise LabError(NOT_EXECUTABLE, f"{source} is no program: {error}") from error
    architecture = host.architecture
    if machine != architecture.elf_machine:
        raise LabError(
            NOT_EXECUTABLE,
            f"{source} is built for another machine (ELF machine {machine}, "
            f"{host.name} runs {architecture.elf_machine}: {architecture.uname_machine})",
            f"build it for {architecture.debian} ({architecture.make_target} puts ours into "
            f"{architecture.build_folder}/), and give its name alone or that path",
        )


def shared_libraries(source: Path, host: Host) -> List[str]:
    """Absolute paths of what the dynamic loader will want; empty for anything but a program."""
    with open(source, "rb") as file:
        if file.read(4) != b"\x7fELF":
            return []
    try:
        elf = Elf(source.read_bytes())
    except NotElf:
        return []
    if elf.machine != host.architecture.elf_machine or not elf.is_dynamic():
        return []
    if not host.architecture.is_native():
        raise LabError(
            NOT_EXECUTABLE,
            f"{source} needs shared libraries for {host.architecture.debian}, which cannot be "
            "looked up on this machine",
            f"link it statically (-static), as {host.architecture.make_target} does",
        )
    done = subprocess.run(
        ["ldd", str(source.resolve())],
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise LabError(NOT_EXECUTABLE, f"ldd cannot read {source}: {done.stderr.strip()}")
    libraries = libraries_in(done.stdout, str(source))
    return libraries + _unwinder_beside(libraries)


def libraries_in(ldd_output: str, program: str) -> List[str]:
    """Paths in what ldd prints; a library that it did not find is an error."""
    missing = re.findall(r"^\s*(\S+) => not found", ldd_output, re.MULTILINE)
    if missing:
        raise LabError(
            NOT_EXECUTABLE,
            f"{program} needs {', '.join(missing)}, which this machine does not have",
            "install the library, or link the program statically",
        )
    return re.findall(r"^\s*(?:\S+ => )?(/.+?) \(0x[0-9a-f]+\)$", ldd_output, re.MULTILINE)


def _refuse_links(below: str, folders: Sequence[str]) -> None:
    """To folders: following them may never end, and dropping them would go unnoticed."""
    for name in folders:
        path = os.path.join(below, name)
        if os.path.islink(path):
            raise LabError(
                BAD_REQUEST,
                f"{path} is a link to a folder, and such links are not followed",
                f"give it by itself: --file {path}",
            )


def _unwinder_beside(libraries: Sequence[str]) -> List[str]:
    """libgcc_s, which libc opens by itself when a thread is cancelled: ldd does not see it."""
    folders = {os.path.dirname(path) for path in libraries if "/libc.so" in path}
    wanted = [os.path.join(folder, "libgcc_s.so.1") for folder in sorted(folders)]
    return [path for path in wanted if os.path.exists(path) and path not in libraries]
