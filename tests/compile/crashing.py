"""Libraries that die as those do whose instructions a processor lacks."""

import struct


def crash_on_call(library: bytes, name: str) -> bytes:
    """The library with an undefined instruction (ud2) at the beginning of every function whose name holds ``name``."""
    (table,) = struct.unpack_from("<Q", library, 40)
    size, count = struct.unpack_from("<HH", library, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", library, table + size * index) for index in range(count)]
    changed = bytearray(library)
    found = 0
    for kind, _, _, _, offset, length, link, *_ in (section[1:2] + section[:1] + section[2:] for section in sections):
        if kind != 11:  # SHT_DYNSYM
            continue
        names = sections[link][4]
        for entry in range(offset, offset + length, 24):
            text, info, _, index, value, _ = struct.unpack_from("<IBBHQQ", library, entry)
            symbol = library[names + text : library.index(b"\0", names + text)].decode()
            if info & 15 == 2 and index and name in symbol:  # STT_FUNC, defined
                home = sections[index]
                at = value - home[3] + home[4]
                changed[at : at + 2] = b"\x0f\x0b"
                found += 1
    assert found
    return bytes(changed)
