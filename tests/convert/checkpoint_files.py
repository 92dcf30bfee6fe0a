"""Writes small TensorFlow 2 checkpoints, so that the reader's tests need no TensorFlow."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from maskwright.convert.wire import masked_checksum

MAGIC = bytes.fromhex("57fb808b247547db")
DTYPES = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int64": 9, "bool": 10, "uint16": 14, "float16": 19}
ATTRIBUTE = "/.ATTRIBUTES/VARIABLE_VALUE"


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, value: int | bytes | str) -> bytes:
    """One field of a protocol-buffer message; zeros and empty strings are left out, as protocol buffers do."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value) if value else b""
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def snappy(data: bytes) -> bytes:
    """Snappy without a single copy: the length and one literal."""
    size = len(data) - 1
    return varint(len(data)) + bytes([61 << 2]) + struct.pack("<H", size) + data


def block(entries: list[tuple[bytes, bytes]], *, compressed: bool) -> bytes:
    """A table's block with shared key prefixes, its restart array, compression byte and checksum."""
    out, before = b"", b""
    for key, value in entries:
        shared = 0
        while shared < min(len(before), len(key)) and before[shared] == key[shared]:
            shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    out += struct.pack("<II", 0, 1)
    content = snappy(out) + b"\1" if compressed else out + b"\0"
    return content + struct.pack("<I", masked_checksum(content))


def write_table(path: Path, entries: list[tuple[bytes, bytes]], *, compressed: bool) -> None:
    """Two data blocks, an index, the footer."""
    half = len(entries) // 2
    data, handles = b"", []
    for part in (entries[:half], entries[half:]):
        if part:
            content = block(part, compressed=compressed)
            handles.append((part[-1][0], varint(len(data)) + varint(len(content) - 5)))
            data += content
    meta = block([], compressed=False)
    index = block(handles, compressed=False)
    meta_handle = varint(len(data)) + varint(len(meta) - 5)
    index_handle = varint(len(data) + len(meta)) + varint(len(index) - 5)
    footer = (meta_handle + index_handle).ljust(40, b"\0") + MAGIC
    path.write_bytes(data + meta + index + footer)


def write_checkpoint(prefix: Path, tensors: Mapping[str, np.ndarray | bytes], *, compressed: bool = False) -> None:
    """Write `prefix.index` and its one data file. A uint16 array is stored as bfloat16, bytes as a string."""
    entries = [(b"", field(1, 1) + field(3, field(1, 1)))]
    data = b""
    for key in sorted(tensors):
        value = tensors[key]
        if isinstance(value, bytes):
            raw, number, shape = varint(len(value)) + bytes(4) + value, 7, ()
        else:
            raw, number, shape = value.tobytes(), DTYPES[value.dtype.name], value.shape
        sizes = b"".join(field(2, field(1, size)) for size in shape)
        entry = field(1, number) + field(2, sizes) + field(4, len(data)) + field(5, len(raw))
        entries.append((key.encode(), entry + varint(6 << 3 | 5) + bytes(4)))
        data += raw
    write_table(prefix.with_name(prefix.name + ".index"), entries, compressed=compressed)
    prefix.with_name(prefix.name + ".data-00000-of-00001").write_bytes(data)


def object_graph(nodes: list[tuple[dict[str, int], str | None]]) -> bytes:
    """A stored object graph: per node its children by name, and the key of its variable."""
    out = b""
    for children, key in nodes:
        node = b"".join(field(1, field(1, child) + field(2, name)) for name, child in children.items())
        if key is not None:
            node += field(2, field(1, "VARIABLE_VALUE") + field(3, key))
        out += varint(1 << 3 | 2) + varint(len(node)) + node
    return out


def graph_of(paths: Mapping[str, str]) -> list[tuple[dict[str, int], str | None]]:
    """The object graph in which each path leads to its key."""
    nodes: list[tuple[dict[str, int], str | None]] = [({}, None)]
    for path, key in paths.items():
        at, parts = 0, path.split("/")
        for part in parts:
            children = nodes[at][0]
            name = part.replace(".S", "/")
            if name not in children:
                children[name] = len(nodes)
                nodes.append(({}, key if part == parts[-1] else None))
            at = children[name]
    return nodes


def model_only(
    folder: Path, variables: Mapping[str, np.ndarray], extra: Mapping[str, np.ndarray] | None = None
) -> Path:
    """A checkpoint of `variables`; `extra` are tensors that no object leads to."""
    keys = {path: path + ATTRIBUTE for path in variables}
    tensors = {keys[path]: value for path, value in variables.items()} | dict(extra or {})
    graph = object_graph(graph_of(keys))
    write_checkpoint(folder / "ckpt-0", {**tensors, "_CHECKPOINTABLE_OBJECT_GRAPH": graph})
    return folder / "ckpt-0"
