"""Writers of the original formats, independent of the readers: plain struct, event by event."""

import struct

AEDAT2_HEADER = (
    b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n"
    b"# Data format is int32 address, int32 timestamp (8 bytes total), repeated for each event\r\n"
    b"# Timestamps tick is 1 us\r\n"
)
AEDAT31_HEADER = (
    b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#Start-Time: 2016-09-01\r\n"
    b"#!END-HEADER\r\n"
)


def aedat2(events, header=AEDAT2_HEADER, junk=0, special=()):
    """`junk`: bits above the 16 that a DVS128 uses; `special`: which events have bit 15 set."""
    return header + b"".join(
        struct.pack(">II", junk | (i in special) << 15 | y << 8 | x << 1 | p, t)
        for i, (x, y, t, p) in enumerate(events)
    )


def packet(events, overflow=0, type_=1, invalid=(), capacity=None):
    body = b"".join(
        struct.pack("<II", x << 17 | y << 2 | p << 1 | (i not in invalid), t)
        for i, (x, y, t, p) in enumerate(events)
    )
    room = len(events) if capacity is None else capacity
    body += bytes(8 * (room - len(events)))
    fields = (8, 4, overflow, room, len(events), len(events) - len(invalid))
    return struct.pack("<HHIIIIII", type_, 1, *fields) + body


def aedat31(*packets, header=AEDAT31_HEADER):
    return header + b"".join(packets)


DAT_HEADER = b"% Data file containing CD events\n% Version 2\n% Date 2017-10-31 11:29:21\n"


def dat(events, header=DAT_HEADER, kind=12, size=8):
    return (
        header
        + bytes([kind, size])
        + b"".join(struct.pack("<II", t, p << 28 | y << 14 | x) for x, y, t, p in events)
    )


def atis(events):
    """Times above 2^23 us by overflow records, each of 2^13 us."""
    out, added = [], 0
    for x, y, t, p in events:
        while t - added >= 2**23:
            out.append(bytes([0, 240, 0, 0, 0]))
            added += 2**13
        out.append(bytes([x, y]) + struct.pack(">I", p << 23 | t - added)[1:])
    return b"".join(out)
