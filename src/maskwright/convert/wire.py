"""The parts of protocol buffers, snappy and their checksums that checkpoints use."""

from __future__ import annotations


class Message:
    """The fields of one protocol-buffer message by number; absent fields read as 0, empty or nothing."""

    def __init__(self, fields: dict[int, list[int | bytes]]) -> None:
        self._fields = fields

    def number(self, field: int) -> int:
        """The last integer of `field`, or 0."""
        value = self._fields.get(field, [0])[-1]
        if not isinstance(value, int):
            raise ValueError(f"field {field} is not a number")
        return value

    def text(self, field: int) -> str:
        """The last string of `field`, or the empty string."""
        return self._bytes(field)[-1].decode() if field in self._fields else ""

    def message(self, field: int) -> Message:
        """The last message of `field`, or an empty one."""
        return self.messages(field)[-1] if field in self._fields else Message({})

    def messages(self, field: int) -> list[Message]:
        """All messages of a repeated `field`."""
        return [read_message(value) for value in self._bytes(field)]

    def _bytes(self, field: int) -> list[bytes]:
        values = self._fields.get(field, [])
        strings = [value for value in values if isinstance(value, bytes)]
        if len(strings) != len(values):
            raise ValueError(f"field {field} is not a string")
        return strings


def read_message(data: bytes) -> Message:
    """Parse a message.

    Raises:
        ValueError: the bytes are no message.
    """
    fields: dict[int, list[int | bytes]] = {}
    position = 0
    while position < len(data):
        tag, position = read_varint(data, position)
        number, kind = tag >> 3, tag & 7
        value: int | bytes
        if kind == 0:
            value, position = read_varint(data, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
            value, position = int.from_bytes(data[position : position + length], "little"), position + length
        elif kind == 2:
            length, position = read_varint(data, position)
            value, position = data[position : position + length], position + length
        else:
            raise ValueError(f"unknown wire type {kind}")
        if position > len(data):
            raise ValueError("a field is cut off")
        fields.setdefault(number, []).append(value)
    return Message(fields)


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the variable-length integer at `position` and the position after it.

    Raises:
        ValueError: the data ends within it.
    """
    value = shift = 0
    while position < len(data):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("the data end within a number")


def decompress_snappy(data: bytes) -> bytes:
    """Decompress one raw snappy block.

    Raises:
        ValueError: the block is damaged.
    """
    length, position = read_varint(data, 0)
    out = bytearray()
    while position < len(data):
        tag = data[position]
        position += 1
        if tag & 3 == 0:
            size = tag >> 2
            if size >= 60:
                extra = size - 59
                size, position = int.from_bytes(data[position : position + extra], "little"), position + extra
            out += data[position : position + size + 1]
            position += size + 1
            continue
        size, offset, position = _snappy_copy(data, tag, position)
        if not 0 < offset <= len(out):
            raise ValueError("a copy points outside of the block")
        start = len(out) - offset
        for index in range(size):  # source and destination may overlap: byte by byte
            out.append(out[start + index])
    if len(out) != length:
        raise ValueError(f"expected {length} bytes, but got {len(out)}")
    return bytes(out)


def masked_checksum(data: bytes) -> int:
    """LevelDB's checksum of a block: CRC-32C, rotated right by 15 bits, plus a constant."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _CRC32C[(value ^ byte) & 0xFF]
    value ^= 0xFFFFFFFF
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _crc32c_of_byte(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


_CRC32C = [_crc32c_of_byte(value) for value in range(256)]


def _snappy_copy(data: bytes, tag: int, position: int) -> tuple[int, int, int]:
    """Size and offset of a copy, and the position after it."""
    if tag & 3 == 1:
        if position >= len(data):
            raise ValueError("a copy is cut off")
        return ((tag >> 2) & 7) + 4, (tag >> 5) << 8 | data[position], position + 1
    width = 2 if tag & 3 == 2 else 4
    return (tag >> 2) + 1, int.from_bytes(data[position : position + width], "little"), position + width
