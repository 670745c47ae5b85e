"""Writes the CD from which Bochs boots: ISO 9660 with an El Torito boot record, for ISOLINUX.

Bochs has no loader for kernels as QEMU has, so the BIOS must find one. Only what the BIOS and
ISOLINUX read is there: one folder, short upper-case names, no extensions of the format. Sources:
ECMA-119; the El Torito specification 1.0; the boot information table of mkisofs -boot-info-table.
"""

import struct
from typing import Dict, List, Tuple

_SECTOR = 2048
_VOLUME = 16  # the sector of the primary volume descriptor, by the standard
_CATALOG, _PATHS_LITTLE, _PATHS_BIG, _FOLDER, _FIRST_FILE = 19, 20, 21, 22, 23
_BOOT_SECTORS = 4  # of 512 bytes that the BIOS loads; the loader fetches the rest of itself
_DATE = bytes(7)


def image(loader: bytes, files: Dict[str, bytes]) -> bytes:
    """The whole disc. `loader` is isolinux.bin; `files` by name, as `A.B` or `A`."""
    named = {"ISOLINUX.BIN": b"", **files}  # its place first: it must know where it lies
    places = _places({**named, "ISOLINUX.BIN": loader})
    at, size = places["ISOLINUX.BIN"]
    named["ISOLINUX.BIN"] = with_boot_information(loader, at)
    end = max(place + _sectors(size) for place, size in places.values())

    sectors = [bytes(_SECTOR)] * _VOLUME
    sectors.append(_volume_descriptor(end))
    sectors.append(_boot_record())
    sectors.append(_sector(b"\xffCD001\x01"))
    sectors.append(_boot_catalog(at))
    sectors.append(_sector(_path_table("<")))
    sectors.append(_sector(_path_table(">")))
    sectors.append(_folder(places))
    sectors += [_padded(content) for content in named.values()]
    return b"".join(sectors)


def with_boot_information(loader: bytes, at: int) -> bytes:
    """Bytes 8 to 63 of the loader: where the volume and the loader are, its length, its sum."""
    body = loader[64:] + bytes(-len(loader) % 4)
    total = sum(struct.unpack(f"<{len(body) // 4}I", body)) & 0xFFFFFFFF
    table = struct.pack("<IIII", _VOLUME, at, len(loader), total) + bytes(40)
    return loader[:8] + table + loader[64:]


def _places(files: Dict[str, bytes]) -> Dict[str, Tuple[int, int]]:
    """(first sector, bytes) of each file, in the given order."""
    places, at = {}, _FIRST_FILE
    for name, content in files.items():
        if len(content) > 0xFFFFFFFF:
            raise ValueError(f"{name} is larger than a file on a CD can be")
        places[name] = (at, len(content))
        at += _sectors(len(content))
    return places


def _volume_descriptor(sectors: int) -> bytes:
    fields = [
        b"\x01CD001\x01\0",
        b" " * 32 + b"CONTINUO_LAB".ljust(32),
        bytes(8) + _both32(sectors) + bytes(32),
        _both16(1) + _both16(1) + _both16(_SECTOR),
        _both32(len(_path_table("<"))),
        struct.pack("<II", _PATHS_LITTLE, 0) + struct.pack(">II", _PATHS_BIG, 0),
        _entry(b"\0", _FOLDER, _SECTOR, folder=True),
        b" " * (128 * 4 + 37 * 3),
        (b"0" * 16 + b"\0") * 4,
        b"\x01",
    ]
    return _sector(b"".join(fields))


def _boot_record() -> bytes:
    system = b"EL TORITO SPECIFICATION".ljust(64, b"\0")
    return _sector(b"\0CD001\x01" + system + struct.pack("<I", _CATALOG))


def _boot_catalog(loader_at: int) -> bytes:
    check = struct.pack("<BBH24sH2s", 1, 0, 0, b"", 0, b"\x55\xaa")
    total = -sum(struct.unpack("<16H", check)) & 0xFFFF
    check = check[:28] + struct.pack("<H", total) + check[30:]
    # bootable, no emulation of a floppy, the usual segment
    entry = struct.pack("<BBHBBHI", 0x88, 0, 0, 0, 0, _BOOT_SECTORS, loader_at)
    return _sector(check + entry)


def _path_table(order: str) -> bytes:
    """The root is the only folder."""
    return struct.pack(f"{order}BBIH", 1, 0, _FOLDER, 1) + b"\0\0"


def _folder(places: Dict[str, Tuple[int, int]]) -> bytes:
    entries: List[bytes] = [
        _entry(b"\0", _FOLDER, _SECTOR, folder=True),
        _entry(b"\1", _FOLDER, _SECTOR, folder=True),
    ]
    for name, (at, size) in sorted(places.items()):
        stem, _, suffix = name.partition(".")
        entries.append(_entry(f"{stem}.{suffix};1".encode("ascii"), at, size))
    return _sector(b"".join(entries))


def _entry(name: bytes, at: int, size: int, folder: bool = False) -> bytes:
    flags = 2 if folder else 0
    body = b"\0" + _both32(at) + _both32(size) + _DATE + bytes((flags, 0, 0)) + _both16(1)
    body += bytes((len(name),)) + name + (b"\0" if len(name) % 2 == 0 else b"")
    return bytes((len(body) + 1,)) + body


def _both16(value: int) -> bytes:
    return struct.pack("<H", value) + struct.pack(">H", value)


def _both32(value: int) -> bytes:
    return struct.pack("<I", value) + struct.pack(">I", value)


def _sectors(size: int) -> int:
    return -(-size // _SECTOR)


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % _SECTOR)


def _sector(content: bytes) -> bytes:
    if len(content) > _SECTOR:
        raise ValueError("too many files for one sector of directory")
    return content.ljust(_SECTOR, b"\0")
