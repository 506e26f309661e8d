"""How many bytes a video file's own header tells of: the plain sign of a file that was cut off."""

import os
from pathlib import Path
from typing import IO

BOXES = b"ftyp styp moov moof mdat free skip wide sidx ssix prft emsg mfra meta udta uuid pnot".split()
HOLDING = (b"moov", b"moof", b"mdat")
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
UNKNOWN_RIFF = (0, 0xFFFFFFFF)


def told_bytes(path: Path) -> int | None:
    """The size in bytes that an mp4, mov, mkv, webm or avi file should have at least, None where nothing tells it.

    Formats that are written as they come (ts, mpeg, live mkv and webm) tell nothing. Raises OSError.
    """
    with open(path, "rb") as file:
        head = file.read(12)
        if head[4:8] in BOXES:
            return _boxes(file)
        if head[:4] == EBML:
            return _segment(file)
        if head[:4] == b"RIFF" and head[8:] == b"AVI ":
            return _riff(file)
    return None


def _boxes(file: IO[bytes]) -> int | None:
    """The end of the last top-level box that holds frames or their index."""
    at, told, size = 0, None, os.fstat(file.fileno()).st_size
    while at < size:
        file.seek(at)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4]), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16])
        if kind not in BOXES or length < 8:  # 0: to the end of the file; else what others appended
            break
        at += length
        told = at if kind in HOLDING else told
    return told


def _segment(file: IO[bytes]) -> int | None:
    """The end of a Matroska segment, which follows the EBML header."""
    file.seek(len(EBML))
    header = _variable_int(file)
    if header is None:
        return None
    file.seek(header, os.SEEK_CUR)
    if file.read(len(SEGMENT)) != SEGMENT:
        return None
    length = _variable_int(file)
    return None if length is None else file.tell() + length


def _variable_int(file: IO[bytes]) -> int | None:
    """An EBML length: the leading zero bits count its bytes. All ones: not known."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    count = 9 - first[0].bit_length()
    mask = (1 << 7 * count) - 1
    value = int.from_bytes(first + file.read(count - 1)) & mask
    return None if value == mask else value


def _riff(file: IO[bytes]) -> int | None:
    """The end of the last RIFF chunk; files over 1 GiB have several."""
    told, at = None, 0
    while True:
        file.seek(at)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] != b"RIFF" or length in UNKNOWN_RIFF:
            return told
        told = at + 8 + length
        at = told + length % 2
