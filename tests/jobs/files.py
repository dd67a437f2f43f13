"""Reading and writing JSONL in tests."""

from __future__ import annotations

import json
import zlib


def write(path, lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def read(path):
    """The records of an output, each of which carries the right checksum, without it."""
    records = []
    for line in path.read_bytes().splitlines():
        record = json.loads(line)
        assert int(record.pop("crc"), 16) == zlib.crc32(line.rpartition(b', "crc": ')[0])
        records.append(record)
    return records
