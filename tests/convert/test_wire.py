from __future__ import annotations

import pytest
from checkpoint_files import field, snappy, varint
from hypothesis import given
from hypothesis import strategies as st

from maskwright.convert.wire import decompress_snappy, masked_checksum, read_message, read_varint


@given(st.integers(0, 2**64 - 1))
def test_numbers_come_back(value):
    data = b"x" + varint(value) + b"y"
    assert read_varint(data, 1) == (value, len(data) - 1)


def test_fields_of_a_message():
    data = field(1, 300) + field(2, "name") + field(3, field(1, 7)) + field(3, field(1, 8))
    data += varint(4 << 3 | 5) + b"\1\0\0\0" + varint(5 << 3 | 1) + b"\2" + bytes(7)
    message = read_message(data)
    assert (message.number(1), message.text(2), message.number(4), message.number(5)) == (300, "name", 1, 2)
    assert [inner.number(1) for inner in message.messages(3)] == [7, 8]
    assert message.message(3).number(1) == 8
    assert (message.number(9), message.text(9), message.messages(9)) == (0, "", [])
    assert message.message(9).number(1) == 0


@pytest.mark.parametrize("data", [b"\x80", b"\x0a\x05ab", b"\x0b", b"\x0d\0\0"])
def test_broken_messages_are_refused(data):
    with pytest.raises(ValueError, match=r"end within|cut off|wire type"):
        read_message(data)


def test_a_number_is_not_a_string():
    message = read_message(field(1, 5) + field(2, "a"))
    with pytest.raises(ValueError, match="field 1 is not a string"):
        message.text(1)
    with pytest.raises(ValueError, match="field 2 is not a number"):
        message.number(2)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (b"\x03\x08abc", b"abc"),  # a literal of three bytes
        (b"\x0a\x04ab\x11\x02", b"ab" * 5),  # copy of 8 bytes from 2 back, one-byte offset: overlapping
        (b"\x06\x08abc\x0a\x03\x00", b"abcabc"),  # copy of 3 bytes from 3 back, two-byte offset
        (b"\x06\x08abc\x0b\x02\x00\x00\x00", b"abcbcb"),  # four-byte offset
        (b"\x40\xf0\x3f" + bytes(range(64)), bytes(range(64))),  # a literal with its length in a byte of its own
        (b"\x00", b""),
    ],
)
def test_snappy_by_hand(block, expected):
    assert decompress_snappy(block) == expected


def test_checksum_by_its_published_check_value():
    """CRC-32C of "123456789" is e3069283; LevelDB masks it."""
    crc = 0xE3069283
    assert masked_checksum(b"123456789") == (((crc >> 15) | (crc << 17 & 0xFFFFFFFF)) + 0xA282EAD8) % 2**32


@given(st.binary(min_size=1, max_size=2000))
def test_snappy_literals_come_back(data):
    assert decompress_snappy(snappy(data)) == data


@pytest.mark.parametrize(
    "block", [b"\x04\x08abc", b"\x06\x08abc\x0a\x04\x00", b"\x06\x08abc\x0a\x00\x00", b"\x08\x04ab\x11"]
)
def test_broken_snappy_is_refused(block):
    with pytest.raises(ValueError, match=r"expected \d+ bytes|outside of the block|cut off"):
        decompress_snappy(block)
