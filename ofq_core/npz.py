"""Read .npz files that may be damaged, or made to exhaust memory."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any

from numpy.lib import format as npy
from numpy.typing import NDArray

HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
# Arrays may be so many times larger than the file, and so much beyond: weights hardly compress.
EXPANSION, BEYOND = 100, 2**24


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a file by name, in this machine's byte order.

    Before memory is taken, what every header claims is compared with what the file holds.

    Raises:
        ValueError: damaged, no .npz, arrays of Python objects, or sizes that cannot be.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len({member.filename for member in members}) < len(members):
                raise ValueError("two arrays have the same name")
            size, most = sum(m.file_size for m in members), path.stat().st_size * EXPANSION + BEYOND
            if size > most:
                raise ValueError(f"its arrays claim {size} bytes: more than such a file can hold")
            found = {}
            for member in members:
                with archive.open(member) as file:
                    _check_header(file, member)
                with archive.open(member) as file:
                    array = npy.read_array(file, allow_pickle=False)
                native = array.dtype.newbyteorder("=")
                found[member.filename.removesuffix(".npy")] = array.astype(native, copy=False)
            return found
    except ValueError as error:  # numpy's may have several lines
        raise ValueError(str(error).partition("\n")[0]) from error
    except Exception as error:  # of zip, zlib, the parser of headers, the disk
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _check_header(file: IO[bytes], member: zipfile.ZipInfo) -> None:
    name, version = member.filename, npy.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"{name}: format {version} is not known")
    shape, _, dtype = HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError(f"{name}: an array of Python objects")
    claimed, held = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
    if claimed != held or any(length < 0 for length in shape):
        raise ValueError(f"{name}: shape {shape} is {claimed} bytes, the file holds {held}")
