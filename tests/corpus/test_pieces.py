import io
import re
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.corpus import pieces as module
from lspm_ray.corpus.lines import MAX_LINE_BYTES
from lspm_ray.corpus.pieces import LINE, PARAGRAPH, pieces, pieces_between

BETWEEN = {"line": LINE, "paragraph": PARAGRAPH}
CONTENT = st.text(alphabet="ab \t\r\n", max_size=80).map(str.encode) | st.lists(
    st.sampled_from([b"a", b"bb c", b"\n", b"\n\n", b"\r\n", b" \n", b"\n \t\n", b"\xef\xbb\xbf", b"x" * 30])
).map(b"".join)


@pytest.fixture(scope="module", autouse=True)
def small() -> object:
    """Chunks and limits small enough to meet every boundary."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("_CHUNK_BYTES", 7), ("_BACK_BYTES", 3), ("_KEPT_BYTES", 5)):
            patch.setattr(module, name, value)
        patch.setattr("lspm_ray.corpus.lines.MAX_LINE_BYTES", 25)
        yield


def expected(content: bytes, document: str) -> list[bytes]:
    """The plain way, by decoding everything and splitting it."""
    lines = [line.rstrip() for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    if document == "paragraph":
        lines = re.split(rb"\n\n+", b"\n".join(lines))
    return [line.strip() for line in lines if line.strip()]


@given(content=CONTENT, document=st.sampled_from(sorted(BETWEEN)))
def test_pieces_are_the_lines_and_paragraphs(content: bytes, document: str) -> None:
    found = [piece for piece in pieces(io.BytesIO(content), BETWEEN[document]) if piece[1]]
    # Trailing blanks within a paragraph are kept: compared without them.
    shown = [b"\n".join(line.rstrip() for line in text.split(b"\n")) for _, text, _ in found]
    wanted = expected(content, document)
    assert len(shown) == len(wanted)
    for (offset, text, complete), short, full in zip(found, shown, wanted, strict=True):
        assert short == full if complete else text == content[offset : offset + 5]
        assert complete or len(content) - offset > 25
        assert content.startswith(text, offset) or offset == 0


@given(CONTENT, st.integers(1, 9), st.sampled_from(sorted(BETWEEN)))
def test_ranges_give_every_piece_exactly_once(content: bytes, parts: int, document: str) -> None:
    between = BETWEEN[document]
    bounds = [len(content) * part // parts for part in range(parts + 1)]
    found = []
    for start, stop in pairwise(bounds):
        inside = list(pieces_between(io.BytesIO(content), between, start, stop))
        assert all(start <= offset < stop for offset, _, _ in inside)
        found += inside
    assert found == list(pieces(io.BytesIO(content), between))


@pytest.mark.parametrize("length", [24, 25, 26, 27, 31, 32, 33, 200])
@pytest.mark.parametrize("end", [b"", b"\n", b"\n\nlast", b"\n   \n\n last"])
def test_a_piece_too_long_is_put_aside_and_the_next_ones_are_read(length: int, end: bytes) -> None:
    found = list(pieces(io.BytesIO(b"first\n\n" + b"x" * length + end), PARAGRAPH))
    assert found[0] == (0, b"first", True)
    assert found[1] == ((7, b"x" * length, True) if length <= 25 else (7, b"x" * 5, False))
    assert [text for _, text, _ in found[2:]] == ([b"last"] if b"last" in end else [])


class Endless:
    """A file of one long line between two short ones, that counts what is read and holds nothing."""

    def __init__(self, long: int) -> None:
        self.size = long + 12
        self.read_bytes = 0
        self._at = 0

    def seek(self, at: int) -> None:
        self._at = at

    def read(self, size: int) -> bytes:
        stop = min(self._at + size, self.size)
        chunk = bytearray(b"x") * (stop - self._at)
        for place, text in ((0, b"first\n"), (self.size - 6, b"\nlast\n")):
            for index, byte in enumerate(text, place):
                if self._at <= index < stop:
                    chunk[index - self._at] = byte
        self._at, self.read_bytes = stop, self.read_bytes + len(chunk)
        return bytes(chunk)


@pytest.mark.parametrize("document", sorted(BETWEEN))
def test_a_giant_line_is_not_held_in_memory(document: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1 << 20)
    monkeypatch.setattr("lspm_ray.corpus.lines.MAX_LINE_BYTES", MAX_LINE_BYTES)
    tracemalloc.start()
    try:
        found = list(pieces(Endless(200_000_000), BETWEEN[document]))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50_000_000
    lines = [(0, b"first", True), (6, b"x" * 5, False), (200_000_007, b"last", True)]
    assert found == (lines if document == "line" else [(0, b"first", False)])


def test_a_unit_in_the_middle_of_a_giant_line_reads_no_more_than_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1 << 20)
    stream = Endless(200_000_000)
    assert list(pieces_between(stream, LINE, 50_000_000, 53_000_000)) == []
    assert stream.read_bytes < 5_000_000
