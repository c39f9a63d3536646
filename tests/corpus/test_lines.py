import bz2
import gzip
import io
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.corpus import lines as module
from lspm_ray.corpus.lines import BrokenStreamError, decompressed, lines, lines_between


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks and limits small enough to meet every boundary."""
    for name, value in (("_CHUNK_BYTES", 7), ("MAX_LINE_BYTES", 20), ("_KEPT_BYTES", 5)):
        monkeypatch.setattr(module, name, value)


CONTENT = st.lists(st.binary(max_size=12).filter(lambda b: b"\n" not in b), max_size=12).map(b"\n".join)


@given(CONTENT)
def test_lines_give_the_content_back_with_true_offsets(content: bytes) -> None:
    found = list(lines(io.BytesIO(content)))
    if not content.startswith(b"\xef\xbb\xbf"):
        assert b"".join(line.content for line in found) == content
    for line in found[1:]:
        assert content[line.offset :].startswith(line.content)


@given(CONTENT, st.integers(1, 9))
def test_ranges_give_every_line_exactly_once(content: bytes, parts: int) -> None:
    bounds = [len(content) * part // parts for part in range(parts + 1)]
    found = [line for start, stop in pairwise(bounds) for line in lines_between(io.BytesIO(content), start, stop)]
    assert found == list(lines(io.BytesIO(content)))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("length", [19, 20, 21, 22, 27, 28, 100])
@pytest.mark.parametrize("end", [b"", b"\n", b"\nlast"])
def test_a_line_too_long_is_put_aside_and_the_next_ones_are_read(length: int, end: bytes) -> None:
    content = b"first\n" + b"x" * length + end
    found = list(lines(io.BytesIO(content)))
    assert found[0].content == b"first\n"
    assert found[1].offset == 6
    assert found[1].complete == (length <= 20)
    assert found[1].content == (b"x" * length + end[:1] if length <= 20 else b"x" * 5)
    assert [(line.offset, line.content) for line in found[2:]] == ([(7 + length, b"last")] if end == b"\nlast" else [])


def test_a_byte_order_mark_is_no_content() -> None:
    assert next(lines(io.BytesIO(b"\xef\xbb\xbfa\n"))).content == b"a\n"


def compress(content: bytes, compression: str) -> bytes:
    if compression == "gzip":
        return gzip.compress(content)
    if compression == "bz2":
        return bz2.compress(content)
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


def read_all(stored: bytes, compression: Any) -> bytes:
    with decompressed(pa.BufferReader(stored), compression, len(stored)) as stream:
        return b"".join(line.content for line in lines(stream))


@pytest.mark.parametrize("compression", ["gzip", "bz2", "zstd"])
def test_compressed_streams(compression: str) -> None:
    content = b"line\n" * 100_000
    assert read_all(compress(content, compression), compression) == content


def test_gzip_of_several_members_is_read_through() -> None:
    assert read_all(gzip.compress(b"a\n") + gzip.compress(b"b\n"), "gzip") == b"a\nb\n"


# Zstandard need not hold a checksum, so a flipped bit can pass there.
@pytest.mark.parametrize(
    ("compression", "damage"),
    [(c, d) for c in ("gzip", "bz2", "zstd") for d in ("cut", "foreign", "flipped") if (c, d) != ("zstd", "flipped")],
)
def test_damage_is_one_kind_of_error(compression: str, damage: str) -> None:
    stored = compress(bytes(range(256)) * 500, compression)
    if damage == "cut":
        stored = stored[: len(stored) // 2]
    elif damage == "flipped":
        middle = len(stored) // 2
        stored = stored[:middle] + bytes([stored[middle] ^ 0xFF] * 8) + stored[middle + 8 :]
    else:
        stored = b"plain text\n"
    with pytest.raises(BrokenStreamError, match="damaged or cut short"):
        read_all(stored, compression)


@pytest.mark.parametrize("compression", ["gzip", "bz2", "zstd"])
@pytest.mark.parametrize("lines_before", [1, 3_000, 200_000])
def test_all_that_comes_before_the_end_of_a_cut_stream_is_given_out(compression: Any, lines_before: int) -> None:
    content = b"".join(b"line %d\n" % number for number in range(lines_before))
    # With a frame of its own for the end: what is left of a block of Zstandard, up to 128 KiB, is no content.
    parts = [content, b"end"] if compression == "zstd" else [content + b"end"]
    stored = b"".join(compress(part, compression) for part in parts)
    found: list[bytes] = []
    with decompressed(pa.BufferReader(stored[:-1]), compression, len(stored)) as stream:
        with pytest.raises(BrokenStreamError, match="damaged or cut short"):
            found.extend(line.content for line in lines(stream))
        with pytest.raises(BrokenStreamError):
            stream.read(1)
    assert b"".join(found) == content


def test_a_decompression_bomb_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BOMB_BYTES", 1 << 20)
    bomb = gzip.compress(bytes(1 << 24))
    with pytest.raises(BrokenStreamError, match="expands more than 200-fold"):
        read_all(bomb, "gzip")
    assert len(read_all(gzip.compress(bytes(1 << 19) + b"\n"), "gzip")) > 1 << 19
