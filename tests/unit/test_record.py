"""Records: what validates, what does not, and the arithmetic around them."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musidecar._ffi import ffi, lib

SALT = 0x1234_5678_9ABC_DEF0


def make(payload: bytes, salt: int = SALT, **fields: int) -> Any:
    """A sealed and closed record in a slot of its own (uint8_t[], 64-byte aligned)."""
    length = lib.record_span(len(payload))
    memory = ffi.new("uint8_t[]", length + 64)
    start = -int(ffi.cast("uintptr_t", memory)) % 64
    header = ffi.cast("struct record_header *", memory + start)
    values = {"index": 7, "ballot": 3 << 8 | 1, "commit": 5, "prev_hash": 99, "kind": 1, "flags": 0}
    values |= {"origin_node": 2, "origin_stream": 11, "origin_sequence": 13} | fields
    for name, value in values.items():
        setattr(header, name, value)
    header.length = len(payload)
    ffi.memmove(header + 1, payload, len(payload))
    assert lib.record_seal(header, salt) == lib.record_hash(header)
    return memory, header


def valid(header: Any, room: int, index: int = 7, prev_hash: int = 99, salt: int = SALT) -> bool:
    return bool(lib.record_valid(header, room, index, prev_hash, salt))


class TestChecksum:
    """Of the payload: one pass in blocks of 32 bytes, four words of which two are multiplied with the other two."""

    MIX_A = 0x6A09E667F3BCC909

    @staticmethod
    def sum_of(payload: bytes, salt: int = SALT) -> int:
        _keep, header = make(payload, salt)
        return int(header.payload_sum)

    @pytest.mark.parametrize("factor", [0, 2**64 - 1])
    def test_a_factor_of_zero_or_minus_one_hides_nothing(self, factor: int) -> None:
        masking = (self.MIX_A ^ factor).to_bytes(8, "little")
        payload = (masking + bytes(8)) * 6
        base = self.sum_of(payload)
        for position in range(len(payload)):
            for shift in range(8):
                other = bytearray(payload)
                other[position] ^= 1 << shift
                assert self.sum_of(bytes(other)) != base, f"bit {shift} of byte {position}"

    @given(words=st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=24), swap=st.data())
    def test_the_order_of_words_counts(self, words: list[int], swap: st.DataObject) -> None:
        i, j = (swap.draw(st.integers(0, len(words) - 1)) for _ in range(2))
        other = list(words)
        other[i], other[j] = words[j], words[i]
        same = other == words
        sums = [self.sum_of(b"".join(word.to_bytes(8, "little") for word in each)) for each in (words, other)]
        assert (sums[0] == sums[1]) == same

    def test_sums_are_spread_evenly(self) -> None:
        """Of payloads that differ in little: every bit of the sum is one as often as not (6 sigma)."""
        count = 4000
        sums = [self.sum_of(i.to_bytes(8, "little") + bytes(56)) for i in range(count)]
        assert len(set(sums)) == count
        for shift in range(64):
            ones = sum(value >> shift & 1 for value in sums)
            assert abs(ones - count / 2) < 6 * (count**0.5) / 2, f"bit {shift}"

    def test_the_salt_is_in_it(self) -> None:
        assert self.sum_of(b"x" * 64) != self.sum_of(b"x" * 64, SALT + 1)


class TestRecord:
    def test_the_layout_is_the_published_one(self) -> None:
        assert ffi.sizeof("struct record_header") == 64
        for length in range(300):
            assert lib.record_span(length) % 64 == 0
            assert lib.record_bytes(length) % 8 == 0
            assert 64 + length + 8 <= lib.record_bytes(length) <= lib.record_span(length) < 64 + length + 8 + 64

    @pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 55, 56, 57, 64, 1000, 70_000])
    def test_it_validates_for_its_place_only(self, length: int) -> None:
        _keep, header = make(bytes(range(256)) * (length // 256) + bytes(length % 256))
        room = lib.record_bytes(length)
        assert valid(header, room)
        assert not valid(header, room - 1)
        assert not valid(header, room, index=8)
        assert not valid(header, room, prev_hash=98)
        assert not valid(header, room, salt=SALT + 1)
        assert lib.record_whole(header, room, 7, SALT)
        assert not lib.record_whole(header, room, 6, SALT)

    @pytest.mark.parametrize("length", [0, 8, 30, 200])
    def test_every_bit_counts(self, length: int) -> None:
        memory, header = make(b"\xa5" * length)
        start = int(ffi.cast("uintptr_t", header)) - int(ffi.cast("uintptr_t", memory))
        room = lib.record_bytes(length)
        covered = [*range(64 + length), *range(room - 8, room)]
        for position in covered:
            for shift in range(8):
                memory[start + position] ^= 1 << shift
                assert not valid(header, room), f"bit {shift} of byte {position}"
                memory[start + position] ^= 1 << shift
        assert valid(header, room)

    def test_row_09_torn_anywhere_it_is_empty(self) -> None:
        """Whatever stood there before: nothing, or the record of the lap before, or another leader's for the place."""
        length = 150
        rng = random.Random(4)
        new = bytes(rng.randbytes(length))
        keep, header = make(new)
        room = lib.record_bytes(length)
        image = bytes(ffi.buffer(header, room))
        others = [bytes(room)]
        for fields in ({"index": 3}, {"ballot": 2 << 8}, {"origin_sequence": 14}):
            keep2, other = make(rng.randbytes(length), **fields)
            others.append(bytes(ffi.buffer(other, room)))
            del keep2
        slot = ffi.buffer(header, room)
        for old in others:
            slot[:] = old
            whole = {image, old} if valid(header, room) else {image}
            for cut in range(room):
                for torn in (image[:cut] + old[cut:], old[:cut] + image[cut:]):
                    slot[:] = torn
                    assert valid(header, room) == (torn in whole), f"{cut} bytes"
        del keep

    def test_trap_08_a_payload_that_ends_in_zeros_is_no_torn_one(self) -> None:
        _keep, header = make(bytes(200))
        assert valid(header, lib.record_bytes(200))

    def test_an_empty_slot_is_never_valid(self) -> None:
        zeros = ffi.new("uint8_t[]", 256)
        for salt in (0, SALT):
            assert not lib.record_valid(zeros, 256, 0, 0, salt)
            assert not lib.record_valid(zeros, 256, 1, 0, salt)

    def test_length_is_not_believed(self) -> None:
        _keep, header = make(b"x" * 8)
        header.length = 0xFFFFFFFF
        assert not valid(header, lib.record_bytes(8))
        assert not lib.record_headed(header, lib.record_bytes(8), 7, 99, SALT)

    def test_the_header_alone_is_enough_to_believe_the_header(self) -> None:
        _keep, header = make(b"x" * 100)
        room = lib.record_bytes(100)
        ffi.cast("uint8_t *", header + 1)[50] ^= 1
        assert not valid(header, room)
        assert lib.record_headed(header, room, 7, 99, SALT)

    def test_the_running_hash_covers_contents_but_no_ballot(self) -> None:
        _keep, header = make(b"abc")
        base = lib.record_hash(header)
        for same in ({"ballot": 9 << 8}, {"commit": 6}):
            keep, other = make(b"abc", **same)
            assert lib.record_hash(other) == base
            del keep
        differing: list[dict[str, int]] = [
            {"index": 8},
            {"prev_hash": 98},
            {"kind": 2},
            {"flags": 1},
            {"origin_node": 3},
            {"origin_stream": 12},
            {"origin_sequence": 14},
        ]
        hashes = {base}
        for fields in differing:
            keep, other = make(b"abc", **fields)
            hashes.add(lib.record_hash(other))
            del keep
        for payload in (b"abd", b"abc\0", b"ab"):
            keep, other = make(payload)
            hashes.add(lib.record_hash(other))
            del keep
        assert len(hashes) == 1 + len(differing) + 3

    @given(length=st.integers(0, 600), noise=st.binary(min_size=64, max_size=64), at=st.integers(0, 600))
    def test_noise_in_it_never_validates(self, length: int, noise: bytes, at: int) -> None:
        _keep, header = make(b"n" * length)
        room = lib.record_bytes(length)
        slot = ffi.buffer(header, room)
        before = bytes(slot)
        end = min(at + 64, room)
        if at < end:
            slot[at:end] = noise[: end - at]
        gap = range(64 + length, room - 8)  # padding before the tail word: nobody's
        changed = any(before[i] != slot[i][0] for i in range(room) if i not in gap)
        assert valid(header, room) == (not changed)


class TestQuorum:
    """Trap 12: majorities, self counted once, even sizes."""

    def test_majority(self) -> None:
        assert [lib.quorum_majority(n) for n in range(1, 9)] == [1, 2, 2, 3, 3, 4, 4, 5]

    @given(values=st.lists(st.integers(0, 2**64 - 1), max_size=8), majority=st.integers(1, 8))
    def test_value_is_what_a_majority_reached(self, values: list[int], majority: int) -> None:
        got = lib.quorum_value(values, len(values), majority)
        expected = sorted(values, reverse=True)[majority - 1] if len(values) >= majority else 0
        assert got == expected

    def test_members(self) -> None:
        assert not lib.quorum_met(0b001, 3) and lib.quorum_met(0b101, 3)
        assert not lib.quorum_met(0b0011, 4) and lib.quorum_met(0b1011, 4)
        assert not lib.quorum_met(0b1, 2) and lib.quorum_met(0b11, 2)
        assert lib.quorum_met(0b1, 1)
