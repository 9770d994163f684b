"""What a file in torch's format claims to hold, checked before torch reads it.

torch's reader looks neither at the checksums of the archive nor, before it allocates, at whether
there are as many bytes as a tensor claims. Here the pickle is read with every class replaced by one
that does nothing, so nothing in it is executed either.
"""

from __future__ import annotations

import hashlib
import io
import math
import mmap
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import torch

from ofq_core.checkpoints.kinds import cause, unreadable
from ofq_core.errors import CheckpointError

# The bytes of an entry of each kind of storage.
_STORAGES = {
    "Double": 8,
    "Float": 4,
    "Half": 2,
    "BFloat16": 2,
    "Long": 8,
    "Int": 4,
    "Short": 2,
    "Char": 1,
    "Byte": 1,
    "Bool": 1,
    "ComplexFloat": 8,
    "ComplexDouble": 16,
}
_REBUILDS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
# Plain data, and the bag of arguments that training programs save. Narrower than torch's own list,
# which has classes that allocate what they are told.
_PLAIN = {
    "argparse.Namespace",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.device",
    "_codecs.encode",
    "builtins.set",
}
_MODELS = ("torch.nn.", "timm.", "torchvision.", "transformers.")
_SHOWN = 3
# What torch.save writes has this protocol.
_PROTOCOL = 2
# Among the attributes of an entry in an archive.
_FOLDER = 0x10
_SEAL = re.compile(rb"ofq sha256 ([0-9a-f]{64})")


def sealed(content: io.BytesIO) -> bytes:
    """What torch.save wrote, with the hash of all of it as the archive's comment.

    Any program still reads it.
    """
    with content.getbuffer() as view, view[:-2] as body:
        comment = f"ofq sha256 {hashlib.sha256(body).hexdigest()}".encode()
    # The archive ends with the length of its comment, which is 0.
    content.seek(-2, io.SEEK_END)
    content.write(len(comment).to_bytes(2, "little") + comment)
    return content.getvalue()


def check_zip(path: Path) -> bool:
    """Check that a file is what was written, and that its tensors are backed by its bytes.

    Returns:
        Whether this suite wrote it, just so.

    Raises:
        CheckpointError: damaged, it claims what it does not hold, or it wants to build other things
            than plain data, which are named.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            listed = archive.infolist()
            entries = {entry.filename: entry for entry in listed}
            if len(entries) < len(listed) or any(map(_unlike_torchs, listed)):
                raise unreadable(path, "its entries are not as torch.save writes them")
            if sum(entry.file_size for entry in listed) > size:
                raise unreadable(path, "its entries overlap")
            whole = _is_sealed(path, archive.comment)
            damaged = None if whole else archive.testzip()
            if damaged is not None:
                raise unreadable(path, f"the checksum of {damaged} does not match")
            (pickled,) = [name for name in entries if name.endswith("/data.pkl")]
            found = _inventory(io.BytesIO(archive.read(pickled)))
        _check_wanted(path, found)
        folder = pickled.removesuffix("data.pkl") + "data/"
        for key, claimed in found.storages.items():
            held = entries[folder + key].file_size
            if held != claimed:
                raise unreadable(path, f"data/{key} claims {claimed} bytes and holds {held}")
    except CheckpointError:
        raise
    except Exception as error:
        raise unreadable(path, error) from cause(error)
    return whole


def check_pickle(path: Path) -> None:
    """The same for torch's older format, which has no checksums.

    Raises:
        CheckpointError: see `check_zip`; or a pickle that torch did not write.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            plain = CheckpointError(
                f"{path} is a plain pickle, and nothing of it was executed: expected what "
                "torch.save or safetensors write. If you trust it, save its weights with torch.save"
            )
            if whole[1] != _PROTOCOL:
                raise plain
            first = _inventory(whole)
            if first.value != torch.serialization.MAGIC_NUMBER:
                # How a pickle of tensors that torch.save did not write holds them.
                first.wanted.discard("torch.storage._load_from_bytes")
                _check_wanted(path, first)
                raise plain
            _, _, found, keys = (_inventory(whole) for _ in range(4))
            _check_wanted(path, found)
            claimed, held = sum(found.storages.values()), len(whole) - whole.tell()
            if claimed > held or set(keys.value) != set(found.storages):
                raise unreadable(path, f"tensors claim {claimed} bytes and it holds {held}")
    except CheckpointError:
        raise
    except Exception as error:
        raise unreadable(path, error) from cause(error)


def _unlike_torchs(entry: zipfile.ZipInfo) -> bool:
    """Whether an entry is packed, or marked as a folder, of which torch reads nothing."""
    packed = entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size
    return packed or bool(entry.external_attr & _FOLDER)


def _is_sealed(path: Path, comment: bytes) -> bool:
    if not comment.startswith(b"ofq"):
        return False
    mark = _SEAL.fullmatch(comment)
    if mark is None:
        raise unreadable(path, "its end is not what was written")
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole,
        memoryview(whole) as view,
        view[: len(view) - len(comment) - 2] as body,
    ):
        digest = hashlib.sha256(body).hexdigest()
    if digest != mark[1].decode():
        raise unreadable(path, "its content is not what was written")
    return True


def _check_wanted(path: Path, found: _Inventory) -> None:
    if not found.wanted:
        return
    names = sorted(found.wanted)
    shown = ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")
    if any(name.startswith(_MODELS) for name in names):
        way = "a pickled model: where its code is, save torch.save(model.state_dict(), NEW)"
    else:
        way = (
            "more than weights: if you trust it, save them alone, "
            "torch.save(torch.load(PATH, weights_only=False)['state_dict'], NEW), with its own key"
        )
    raise CheckpointError(
        f"{path} wants to load {shown}, which is not plain data: refused, and nothing of it was "
        f"executed. It is {way}"
    )


class _Inert:
    """Takes the place of all that a pickle builds: swallows everything and does nothing."""

    def __new__(cls, *_: object, **__: object) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, item: object) -> None:
        pass

    extend = add = update = append


class _Inventory(pickle.Unpickler):
    """Reads a pickle for what it wants to build and how many bytes its tensors claim.

    wanted: names beside plain data. storages: key -> bytes. value: what was pickled, inert.
    """

    def __init__(self, pickled: bytes) -> None:
        super().__init__(io.BytesIO(pickled))
        self.wanted: set[str] = set()
        self.storages: dict[str, int] = {}
        self.value: Any = self.load()

    def find_class(self, module: str, name: str) -> Any:
        """Something inert for any name."""
        # Python 2's name for it, which this protocol writes.
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full in _REBUILDS:
            return _check_backed
        if full == "collections.OrderedDict":
            return OrderedDict
        if full == "torch.Size":
            return tuple
        size = _STORAGES.get(name.removesuffix("Storage"))
        if module == "torch" and name.endswith("Storage") and size is not None:
            return size
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if full not in _PLAIN and not is_dtype:
            self.wanted.add(full)
        return _Inert

    def persistent_load(self, saved: Any) -> Any:
        """A storage: its number of entries. ("storage", type, key, device, entries, view)"""
        kind, element, key, _, count, *view = saved
        if element is _Inert:
            # Of a type that has no place in weights, which `wanted` names.
            return None
        if kind != "storage" or not isinstance(element, int) or count < 0:
            raise pickle.UnpicklingError(f"a storage of {element!r} with {count!r} entries")
        if self.storages.setdefault(key, element * count) != element * count:
            raise pickle.UnpicklingError(f"storage {key} has two sizes")
        if view and view[0] is not None:
            _, start, length = view[0]
            if start < 0 or length < 0 or start + length > count:
                raise pickle.UnpicklingError(f"a view of storage {key} is larger than it")
            return length
        return count


def _check_backed(count: Any, start: int, size: Any, stride: Any, *_: object) -> _Inert:
    """In place of building a tensor: does its storage hold all of it, each entry once?"""
    if not isinstance(count, int):
        # Something else in place of a storage, which `wanted` names.
        return _Inert()
    entries = math.prod(size)
    last = start + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((0, start, *size, *stride)) < 0 or (entries and (last >= count or entries > count)):
        raise pickle.UnpicklingError(f"a tensor of {entries} entries in a storage of {count}")
    return _Inert()


def _inventory(stream: IO[bytes] | mmap.mmap) -> _Inventory:
    """Read one pickle from where the stream stands; it then stands behind it."""
    start, highest = stream.tell(), 0
    for code, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]
        if code.proto > _PROTOCOL:
            raise pickle.UnpicklingError(f"protocol {code.proto}")
        if code.name.endswith("PUT"):
            highest = max(highest, int(argument))  # type: ignore[arg-type]
    end = stream.tell()
    # The unpickler makes room for as many marks as the highest.
    if highest > end - start:
        raise pickle.UnpicklingError(f"mark {highest}")
    stream.seek(start)
    return _Inventory(stream.read(end - start))
