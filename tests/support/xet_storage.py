"""What a server must know of Xet: https://huggingface.co/docs/xet.

A client cuts files into chunks, packs chunks into xorbs, and says in a shard of which chunks each
file consists. Here the files are put together again and compared with their sha256.
"""

import hashlib
import struct
from dataclasses import dataclass, field

ENTRY = 48  # bytes of everything in a shard
HEADER = 48
WITH_VERIFICATION, WITH_METADATA = 1 << 31, 1 << 30
END = b"\xff" * 32
UNCOMPRESSED, LZ4, GROUPED_LZ4 = range(3)


@dataclass(frozen=True)
class Chunk:
    """Where a chunk is in its xorb, in bytes, and its content."""

    start: int
    end: int
    content: bytes


@dataclass(frozen=True)
class Term:
    """Chunks [first, last) of a xorb, and how many bytes they unpack to."""

    xorb: str
    first: int
    last: int
    length: int


@dataclass
class XetStorage:
    """Attributes:
    xorbs: hash → as they came.
    files: sha256 → content, of all that shards describe.
    """

    xorbs: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    _terms: dict[str, list[Term]] = field(default_factory=dict)
    _hashes: dict[str, str] = field(default_factory=dict)

    def hash_of(self, content: bytes) -> str | None:
        """Xet's own hash of a file that came by Xet."""
        return self._hashes.get(hashlib.sha256(content).hexdigest())

    def add_xorb(self, hash: str, content: bytes) -> bool:
        is_new = hash not in self.xorbs
        self.xorbs[hash] = content
        return is_new

    def add_shard(self, shard: bytes) -> None:
        """Raises ValueError for a file that its chunks do not give."""
        position = HEADER
        while shard[position : position + 32] != END:
            file, flags, count = struct.unpack_from("<32sII", shard, position)
            position += ENTRY
            terms = []
            for _ in range(count):
                entry = struct.unpack_from("<32sIIII", shard, position)
                terms.append(Term(_text(entry[0]), entry[3], entry[4], entry[2]))
                position += ENTRY
            if flags & WITH_VERIFICATION:
                position += count * ENTRY
            if not flags & WITH_METADATA:
                raise ValueError("a file without its sha256")
            sha256 = _text(shard[position : position + 32])
            position += ENTRY
            content = b"".join(map(self._unpacked, terms))
            if hashlib.sha256(content).hexdigest() != sha256:
                raise ValueError("the content is not what was announced")
            self.files[sha256] = content
            self._terms[_text(file)] = terms
            self._hashes[sha256] = _text(file)

    def reconstruction(self, file: str, span: tuple[int, int] | None, url: str) -> dict | None:
        """Of which chunks the bytes [start, end) of a file are made, and where those are."""
        terms, position, offset = [], 0, 0
        for term in self._terms[file]:
            end = position + term.length
            if span is None or (position < span[1] and span[0] < end):
                if span and not terms:
                    offset = span[0] - position
                terms.append(term)
            position = end
        if not terms:
            return None
        fetch: dict[str, list] = {}
        for term in terms:
            chunks = _chunks(self.xorbs[term.xorb])[term.first : term.last]
            fetch.setdefault(term.xorb, []).append(
                {
                    "range": {"start": term.first, "end": term.last},
                    "url": f"{url}/{term.xorb}",
                    "url_range": {"start": chunks[0].start, "end": chunks[-1].end - 1},
                }
            )
        return {
            "offset_into_first_range": offset,
            "terms": [
                {
                    "hash": term.xorb,
                    "unpacked_length": term.length,
                    "range": {"start": term.first, "end": term.last},
                }
                for term in terms
            ],
            "fetch_info": fetch,
        }

    def _unpacked(self, term: Term) -> bytes:
        if term.xorb not in self.xorbs:
            raise ValueError("a xorb is missing")
        chunks = _chunks(self.xorbs[term.xorb])[term.first : term.last]
        content = b"".join(chunk.content for chunk in chunks)
        if len(content) != term.length:
            raise ValueError("a term has another length than its chunks")
        return content


def _text(hash: bytes) -> str:
    """A hash as it stands in addresses: four little-endian numbers, in hexadecimal digits."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", hash))


def _chunks(xorb: bytes) -> list[Chunk]:
    chunks, position = [], 0
    # Behind the chunks there may be a footer, which begins with other bytes than a chunk's version.
    while position < len(xorb) and xorb[position] == 0:
        packed = int.from_bytes(xorb[position + 1 : position + 4], "little")
        scheme = xorb[position + 4]
        unpacked = int.from_bytes(xorb[position + 5 : position + 8], "little")
        start, position = position, position + 8 + packed
        content = xorb[start + 8 : position]
        if scheme != UNCOMPRESSED:
            content = _lz4_frame(content)
        if scheme == GROUPED_LZ4:
            content = _ungrouped(content)
        if len(content) != unpacked:
            raise ValueError("a chunk has another length than its header says")
        chunks.append(Chunk(start, position, content))
    return chunks


def _ungrouped(content: bytes) -> bytes:
    """The first bytes of all groups of four come first, then the second ones, and so on."""
    result, position = bytearray(len(content)), 0
    for place in range(4):
        count = len(range(place, len(content), 4))
        result[place::4] = content[position : position + count]
        position += count
    return bytes(result)


def _lz4_frame(frame: bytes) -> bytes:
    """LZ4's frame format; checksums are skipped, as the sha256 of the whole is compared."""
    flags = frame[4]
    position = 7 + 8 * bool(flags & 0x08) + 4 * bool(flags & 0x01)
    result = bytearray()
    while size := int.from_bytes(frame[position : position + 4], "little"):
        position += 4
        length = size & 0x7FFFFFFF
        block = frame[position : position + length]
        if size & 0x80000000:
            result += block
        else:
            _lz4_block(block, result)
        position += length + 4 * bool(flags & 0x10)
    return bytes(result)


def _lz4_block(block: bytes, result: bytearray) -> None:
    position = 0

    def length(start: int) -> int:
        nonlocal position
        if start == 15:
            while True:
                start += block[position]
                position += 1
                if block[position - 1] != 255:
                    break
        return start

    while position < len(block):
        token = block[position]
        position += 1
        literals = length(token >> 4)
        result += block[position : position + literals]
        position += literals
        if position >= len(block):
            return  # the last sequence has no match
        offset = int.from_bytes(block[position : position + 2], "little")
        position += 2
        for _ in range(length(token & 15) + 4):
            result.append(result[-offset])
