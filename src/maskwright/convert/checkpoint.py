"""Reads TensorFlow 2 checkpoints (`.index` and `.data` files) with numpy alone.

Source of the formats: LevelDB's table format, tensorflow/core/protobuf/tensor_bundle.proto and
trackable_object_graph.proto.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from maskwright.convert.wire import decompress_snappy, masked_checksum, read_message, read_varint
from maskwright.errors import UserError

_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_MODEL_ATTRIBUTES = ("model", "_model")  # of a checkpoint, and of an exported SavedModel
# Stored beside the model, or below it where the model is the root.
_BOOKKEEPING = ("optimizer", "backbone_optimizer", "step", "global_step", "save_counter")
_OPTIMIZER_SLOT = "/.OPTIMIZER_SLOT/"
_KERAS_COLLECTIONS = {"variables", "trainable_variables", "non_trainable_variables", "keras_api", "signatures"}
_TABLE_MAGIC = bytes.fromhex("57fb808b247547db")
_FOOTER_BYTES = 48
_BFLOAT16, _STRING = 14, 7
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 9: "<i8", 10: "?", _BFLOAT16: "<u2", 19: "<f2"}


@dataclass(frozen=True)
class _Entry:
    """The place of one tensor: dtype number, shape, shard, offset and size in bytes."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int


class _Node(NamedTuple):
    """One object of the graph: the numbers of its children by attribute name, and its checkpoint key, if any."""

    children: dict[str, int]
    key: str | None


class Checkpoint:
    """The tensors of one checkpoint, by the keys in the file; read from disk one at a time.

    Args:
        path: the checkpoint's prefix (`DIR/ckpt-0`), its `.index` file, or the folder that holds the one
            checkpoint (for an exported SavedModel its `variables` folder).

    Raises:
        UserError: there is no such checkpoint, or its index is not a TensorFlow 2 checkpoint's.
    """

    def __init__(self, path: str | Path) -> None:
        self.prefix = _find_prefix(Path(path))
        index = Path(f"{self.prefix}.index")
        try:
            entries = dict(_read_table(index.read_bytes()))
            header = read_message(entries.pop(b""))
            self._entries = {key.decode(): _read_entry(value) for key, value in entries.items()}
        except (ValueError, KeyError, IndexError) as error:
            raise UserError(f"{index} is not the index of a TensorFlow 2 checkpoint, or it is damaged") from error
        if header.number(2):
            raise UserError(f"{index}: big-endian checkpoints are not supported")
        shards = max(1, header.number(1))
        self._shards = [Path(f"{self.prefix}.data-{shard:05d}-of-{shards:05d}") for shard in range(shards)]
        for number, shard in enumerate(self._shards):
            ends = (entry.offset + entry.size for entry in self._entries.values() if entry.shard == number)
            needed = max(ends, default=0)
            if not shard.is_file():
                raise UserError(f"{shard} is missing; a checkpoint needs its .index file and all of its .data files")
            found = shard.stat().st_size
            if found < needed:
                raise UserError(f"{shard} is cut off: the index needs {needed} bytes, the file has {found}")

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def keys(self) -> list[str]:
        """All keys of the file, sorted, optimizer slots and bookkeeping included."""
        return list(self._entries)

    def read(self, key: str) -> np.ndarray:
        """Return the tensor under `key` (bfloat16 widened to float32; strings as an object array of bytes).

        Raises:
            UserError: there is no such key, or its data type is not supported.
        """
        if key not in self._entries:
            raise UserError(f"checkpoint {self.prefix} has no tensor {key!r}")
        entry = self._entries[key]
        with self._shards[entry.shard].open("rb") as file:
            file.seek(entry.offset)
            raw = file.read(entry.size)
        if entry.dtype == _STRING:
            return _read_strings(raw, entry.shape)
        if entry.dtype not in _DTYPES:
            raise UserError(f"checkpoint {self.prefix}: {key!r} has the unsupported data type {entry.dtype}")
        values = np.frombuffer(raw, _DTYPES[entry.dtype]).reshape(entry.shape)
        if entry.dtype == _BFLOAT16:
            return (values.astype("<u4") << 16).view("<f4")
        return values


class OtherTensors(NamedTuple):
    """The keys of a file that are not variables of its model.

    optimizer_slots: the moments that an optimizer keeps for each variable.
    bookkeeping: the optimizer's own values, the step, the number of saves.
    unknown: anything else.
    """

    optimizer_slots: list[str]
    bookkeeping: list[str]
    unknown: list[str]


class Variables(Mapping[str, np.ndarray]):
    """The variables of a checkpoint of any kind, by attribute path (`model/_mask_net/project_out/kernel`).

    Paths come from the stored object graph, so that the positional keys of a SavedModel and the keys of a checkpoint
    give the same paths. Optimizer slots, objects outside of the model, and the lists that Keras keeps beside the
    attributes are left out. Every path begins with `model`, also where the model itself is the root of the checkpoint.
    A `/` within a name is written `.S`.

    Raises:
        UserError: the file cannot be read (see `Checkpoint`), or holds no object graph or no model.
    """

    def __init__(self, path: str | Path) -> None:
        self._checkpoint = Checkpoint(path)
        if _OBJECT_GRAPH not in self._checkpoint:
            raise UserError(f"checkpoint {self._checkpoint.prefix} holds no object graph: it is not of TensorFlow 2")
        try:
            nodes = _read_object_graph(bytes(self._checkpoint.read(_OBJECT_GRAPH).item()))
            paths = dict(_attribute_paths(nodes))
        except (ValueError, IndexError) as error:
            raise UserError(f"checkpoint {self._checkpoint.prefix}: its object graph is damaged") from error
        self._keys = {path: key for path, key in paths.items() if key in self._checkpoint}
        if not self._keys:
            raise UserError(f"checkpoint {self._checkpoint.prefix} holds no variables of a model")

    def __getitem__(self, path: str) -> np.ndarray:
        return self._checkpoint.read(self._keys[path])

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def others(self) -> OtherTensors:
        """What else the file holds: neither a variable of the model nor the object graph itself."""
        variables = {*self._keys.values(), _OBJECT_GRAPH}
        rest = [key for key in self._checkpoint.keys() if key not in variables]  # noqa: SIM118
        slots = [key for key in rest if _OPTIMIZER_SLOT in key]
        bookkeeping = [key for key in rest if key not in slots and key.partition("/")[0] in _BOOKKEEPING]
        return OtherTensors(slots, bookkeeping, [key for key in rest if key not in {*slots, *bookkeeping}])


def _find_prefix(path: Path) -> Path:
    if path.is_dir():
        found = sorted(path.glob("*.index"))
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise UserError(
                f"expected one checkpoint (*.index) in the folder {path}, but found {names}; "
                "name its prefix, and of a SavedModel the folder 'variables'"
            )
        return found[0].with_suffix("")
    prefix = path.with_suffix("") if path.suffix == ".index" else path
    if not Path(f"{prefix}.index").is_file():
        raise UserError(f"there is no checkpoint {prefix}: {prefix}.index does not exist")
    return prefix


def _read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a LevelDB table."""
    if len(data) < _FOOTER_BYTES or data[-len(_TABLE_MAGIC) :] != _TABLE_MAGIC:
        raise ValueError("no table footer")
    position = len(data) - _FOOTER_BYTES
    for _ in range(2):  # the meta index, which checkpoints leave empty
        _, position = read_varint(data, position)
    offset, position = read_varint(data, position)
    size, position = read_varint(data, position)
    for _, handle in _read_block(data, offset, size):
        block_offset, after = read_varint(handle, 0)
        block_size, _ = read_varint(handle, after)
        yield from _read_block(data, block_offset, block_size)


def _read_block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    checksum = data[offset + size + 1 : offset + size + 5]
    if masked_checksum(data[offset : offset + size + 1]) != int.from_bytes(checksum, "little"):
        raise ValueError("a block is damaged")
    block, compression = data[offset : offset + size], data[offset + size]
    if compression == 1:
        block = decompress_snappy(block)
    elif compression != 0:
        raise ValueError(f"unknown block compression {compression}")
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (restarts + 1)
    position, key = 0, b""
    while position < end:
        shared, position = read_varint(block, position)
        added, position = read_varint(block, position)
        length, position = read_varint(block, position)
        key = key[:shared] + block[position : position + added]
        position += added
        yield key, block[position : position + length]
        position += length


def _read_entry(data: bytes) -> _Entry:
    message = read_message(data)
    shape = tuple(dimension.number(1) for dimension in message.message(2).messages(2))
    return _Entry(message.number(1), shape, message.number(3), message.number(4), message.number(5))


def _read_strings(raw: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """String tensors: all lengths as varints, four bytes of checksum, the bytes."""
    values, position, lengths = np.empty(math.prod(shape), object), 0, []
    for _ in values:
        length, position = read_varint(raw, position)
        lengths.append(length)
    position += 4
    for index, length in enumerate(lengths):
        values[index] = raw[position : position + length]
        position += length
    return values.reshape(shape)


def _read_object_graph(data: bytes) -> list[_Node]:
    nodes = []
    for node in read_message(data).messages(1):
        children = {child.text(2): child.number(1) for child in node.messages(1)}
        keys = [attribute.text(3) for attribute in node.messages(2) if attribute.text(1) == "VARIABLE_VALUE"]
        nodes.append(_Node(children, keys[0] if keys else None))
    return nodes


def _attribute_paths(nodes: list[_Node]) -> Iterator[tuple[str, str]]:
    """Yield the shortest attribute path and the checkpoint key of each variable below the model.

    TensorFlow names the keys of a checkpoint by the same breadth-first walk.
    """
    root = nodes[0].children
    start = next((root[name] for name in _MODEL_ATTRIBUTES if name in root), 0)
    queue, seen = deque([("model", start)]), {start}
    while queue:
        path, number = queue.popleft()
        node = nodes[number]
        if node.key is not None:
            yield path, node.key
        passed_over = _KERAS_COLLECTIONS if number else _KERAS_COLLECTIONS.union(_BOOKKEEPING)
        for name, child in node.children.items():
            if name not in passed_over and child not in seen:
                seen.add(child)
                queue.append((f"{path}/{name.replace('.', '..').replace('/', '.S')}", child))
