"""The header of a GGUF file: its metadata and its table of tensors.

The layout is that of the GGUF specification (ggml project, ``docs/gguf.md``), versions 2 and 3,
little-endian::

    magic "GGUF" | version u32 | tensor count u64 | metadata count u64
    metadata:  key string | value type u32 | value          (repeated)
    tensors:   name string | rank u32 | sizes u64 * rank | ggml type u32 | offset u64   (repeated)
    padding to the alignment | tensor data (offsets count from here)

Why our own reader: the ``gguf`` package wraps every element of every array in numpy views, which takes
seconds for a vocabulary of 50,000 tokens. Walking the bytes once takes a tenth of a second.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

from ...errors import WeightsError
from ..fields import shorten
from .files import check_regular

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_HEADER = 2**27  # bytes; the largest known vocabularies take a tenth of it
_MAX_ARRAY = 2**24  # elements, ten times the largest known

_STRING, _ARRAY = 8, 9
# value type -> struct format of one value (GGUF specification, gguf_metadata_value_type)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class GGUFTensor:
    """One entry of the tensor table.

    ``shape`` is in torch order (rows first; the file stores it reversed), ``ggml_type`` is the number
    of the quantization type, ``offset`` counts bytes from the start of the file.
    """

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    offset: int


@dataclass(frozen=True)
class GGUFFile:
    """A parsed header: ``metadata`` by key, ``tensors`` by name, ``size`` of the whole file in bytes."""

    path: Path
    metadata: Mapping[str, object]
    tensors: Mapping[str, GGUFTensor]
    size: int

    @property
    def architecture(self) -> str:
        """``general.architecture``, e.g. ``"llama"``. Raises WeightsError if the file does not say."""
        value = self.metadata.get("general.architecture")
        if not isinstance(value, str):
            raise WeightsError(f"{self.path}: the metadata has no general.architecture.")
        return value


def is_gguf(path: Path) -> bool:
    """True for an existing file whose name ends in ``.gguf`` or whose first bytes are the GGUF magic."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".gguf":
        return True
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def read_gguf(path: Path) -> GGUFFile:
    """Parse the header of the GGUF file ``path``; no tensor data is read.

    Raises WeightsError, naming the file, if it is not GGUF, has an unknown version, ends inside the
    header or contradicts itself.
    """
    size = check_regular(path, WeightsError)
    if size < 24:
        raise WeightsError(f"{path}: {size} bytes are too few for a GGUF header; the file is truncated.")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _parse(path, data, size)
        except (struct.error, IndexError) as error:
            raise WeightsError(
                f"{path}: the GGUF header is cut off, damaged or longer than {_MAX_HEADER} bytes."
            ) from error
        except UnicodeDecodeError as error:
            raise WeightsError(
                f"{path}: a name or text in the GGUF header is not UTF-8; it is damaged."
            ) from error


def _parse(path: Path, data: mmap.mmap, size: int) -> GGUFFile:
    num_tensors, num_entries = _check_preamble(path, data)
    cursor = _Cursor(path, data, min(size, _MAX_HEADER), position=24)
    metadata: dict[str, object] = {}
    for _ in range(num_entries):
        key = cursor.string()
        if key in metadata:
            raise WeightsError(f"{path}: the metadata key {shorten(key)} appears twice; the file is damaged.")
        metadata[key] = cursor.value()
    table: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(num_tensors):
        name, shape, ggml_type, offset = cursor.tensor()
        if name in table:
            raise WeightsError(f"{path}: the tensor {shorten(name)} is listed twice; the file is damaged.")
        table[name] = shape, ggml_type, offset
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment % 8:
        raise WeightsError(
            f"{path}: general.alignment is {alignment!r}; a positive multiple of 8 is required."
        )
    data_start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, GGUFTensor] = {}
    for name, (shape, ggml_type, offset) in table.items():
        if offset % alignment:
            raise WeightsError(f"{path}: the tensor {name!r} is not aligned to {alignment} bytes.")
        tensors[name] = GGUFTensor(name, shape, ggml_type, data_start + offset)
    return GGUFFile(path, metadata, tensors, size)


def _check_preamble(path: Path, data: mmap.mmap) -> tuple[int, int]:
    """Check magic and version; return (number of tensors, number of metadata entries)."""
    if data[:4] != _MAGIC:
        raise WeightsError(f"{path}: not a GGUF file; it starts with {data[:4]!r} instead of {_MAGIC!r}.")
    (version,) = struct.unpack_from("<I", data, 4)
    if version not in _VERSIONS:
        hint = " (a big-endian file)" if version & 0xFFFF == 0 else ""
        raise WeightsError(f"{path}: GGUF version {version}{hint}; supported: {_VERSIONS}. Convert it again.")
    return struct.unpack_from("<QQ", data, 8)


class _Cursor:
    """Reads values one after another; every length is checked against the end of the file."""

    def __init__(self, path: Path, data: mmap.mmap, size: int, position: int):
        self.path = path
        self.data = data
        self.size = size
        self.position = position

    @overload
    def scalar(self, code: Literal["I", "Q"]) -> int: ...

    @overload
    def scalar(self, code: str) -> int | float | bool: ...

    def scalar(self, code: str) -> int | float | bool:
        if self.position > self.size:
            raise IndexError(self.position)
        (value,) = struct.unpack_from("<" + code, self.data, self.position)
        self.position += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        (length,) = struct.unpack_from("<Q", self.data, self.position)
        start = self.position + 8
        end = start + length
        if end > self.size:
            raise IndexError(end)
        self.position = end
        return self.data[start:end].decode("utf-8")

    def value(self) -> object:
        return self._value_of_type(self.scalar("I"))

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.string()
        rank = self.scalar("I")
        if rank > 4:
            raise WeightsError(
                f"{self.path}: the tensor {name!r} claims {rank} dimensions; the file is damaged."
            )
        sizes = struct.unpack_from(f"<{rank}Q", self.data, self.position)
        self.position += 8 * rank
        ggml_type = self.scalar("I")
        return name, tuple(reversed(sizes)), ggml_type, self.scalar("Q")

    def _value_of_type(self, kind: int) -> object:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array()
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        raise WeightsError(f"{self.path}: metadata value of unknown type {kind}; the file is damaged.")

    def _array(self) -> list:
        kind, count = struct.unpack_from("<IQ", self.data, self.position)
        self.position += 12
        if count > _MAX_ARRAY:
            raise WeightsError(f"{self.path}: a metadata array of {count} elements; the file is damaged.")
        if kind == _STRING:
            # a damaged count must not make us build a huge list: each string takes at least its length field
            if count * 8 > self.size - self.position:
                raise IndexError(count)
            return [self.string() for _ in range(count)]
        if kind not in _SCALARS:
            raise WeightsError(f"{self.path}: a metadata array of type {kind}; the file is damaged.")
        width = struct.calcsize("<" + _SCALARS[kind])
        if count * width > self.size - self.position:
            raise IndexError(count)
        values = struct.unpack_from(f"<{count}{_SCALARS[kind]}", self.data, self.position)
        self.position += count * width
        return list(values)
