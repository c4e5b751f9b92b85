"""Seeded mutations of files: of their bytes, and of what is inside a zip archive, a JSON text or a safetensors header.

Random bytes alone only reach a reader's first check. The structure-aware mutations keep the frame right (checksums of
zip entries, the length of a header), so that the checks behind it are reached too.
"""

import io
import json
import struct
import warnings
import zipfile
from random import Random

_TOKENS = (
    *(b"\x00", b"\xff", b"\xff\xff\xff\xff", b"\xff" * 8, b"\x00" * 8, b"\x80", b"\x7f\xff\xff\xff", b"\xed\xa0\x80"),
    *(b"null", b"true", b"NaN", b"Infinity", b"-1", b"1e999", b"0", b"9" * 30, b"9" * 5000, b'""', b"[]", b"{}"),
    *(b'"\\ud800"', b"\\u0000", b"\x1b]0;title\x07", b"\xef\xbb\xbf", b"\r\n", b"\n", b"\t", b": ", b"- ", b", "),
    *(b"'|O'", b"'>f4'", b"'<i8'", b"(2147483647,)", b"(" * 200, b")" * 200, b"L", b"True", b"lambda: 0", b"# "),
    *(b"&a ", b"*a", b"!!python/object:os.system ", b"!!int ", b"!!timestamp ", b"<<: *a", b"? ", b"|\n", b"---\n"),
    *(b"[" * 2000, b"{" * 2000, b'{"a":' * 2000, b"- " * 2000, b"../", b"/etc/passwd", b"![](", b"<img src='", b"]("),
)
_VALUES: tuple[object, ...] = (
    *(None, True, False, 0, -1, 1, 2, 7, 255, 2**31, 2**63, -(2**63), 2**64, 10**30, 10**400, 0.5, -0.0, 1e308),
    *(float("nan"), float("inf"), "", "x", "None", "0", "\x00", "\ud800", "\x1b[2J", "\u202e", "é" * 300, "F32", "I64"),
    *([], {}, [[]], [{}], {"a": None}, [1, 2, 3], ["a"], {"": ""}, [0] * 50, {"role": "user", "content": "x"}),
)
_ENTRIES = ("x", "/", "../x.npy", "x\ny.npy", "archive/data.pkl", "\x1b.npy", "layer_9999.npy")
_KEYS = ("", "x", "__metadata__", "\ud800", "\x00", "tools", "9.9.9", "0.99999999", "1.99999999.0")


def mutated(data: bytes, random: Random) -> bytes:
    """Return a variant of a file."""
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        data = _once(data, random)
    return data


def _once(data: bytes, random: Random) -> bytes:
    if random.random() < 0.65:
        if data.startswith(b"PK"):
            return _zip(data, random) or _bytes(data, random)
        if data[8:9] == b"{" and len(data) > 8:
            return _safetensors(data, random) or _bytes(data, random)
        if data.lstrip()[:1] in (b"{", b"["):
            return _lines(data, random) or _bytes(data, random)
    return _bytes(data, random)


def _bytes(data: bytes, random: Random) -> bytes:
    """Change some bytes: replace, delete, repeat or insert them, or cut the rest off."""
    place = random.randint(0, len(data))
    length = random.choice((1, 1, 2, 4, 8, 50, 500))
    kind, rest = random.randint(0, 6), data[place:]
    if kind == 0:
        return data[:place]
    if kind == 1 and rest:
        return data[:place] + bytes([rest[0] ^ 1 << random.randint(0, 7)]) + rest[1:]
    start = random.randint(0, len(data))
    number = random.choice((0, 1, 2**15, 2**16 - 1, 2**31, 2**32 - 1))
    new = (
        b"",
        random.randbytes(length),
        random.choice(_TOKENS),
        data[start : start + length] * random.choice((1, 2, 30)),
        struct.pack("<I", number),
    )[max(0, kind - 2)]
    # Half of the times the new bytes come in place of old ones.
    replaced = length if not new else len(new) * random.randint(0, 1)
    return data[:place] + new + rest[replaced:]


def _zip(data: bytes, random: Random) -> bytes | None:
    """Change an entry of a zip archive; its checksum is right again. None if the archive cannot be read."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    except Exception:
        return None
    if not entries:
        return None
    index = random.randrange(len(entries))
    name, content = entries[index]
    kind = zipfile.ZIP_STORED
    match random.randint(0, 9):
        case 0:
            entries[index] = (
                random.choice(("", "/", "../x.npy", "x\ny.npy", name + name, "data.pkl", "\x1b.npy")),
                content,
            )
        case 1:
            entries.append((name, content))
        case 2:
            del entries[index]
        case 3:
            kind = random.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
        case _:
            # Most of what can go wrong is in the first bytes of an entry.
            end = random.choice((128, 400, len(content)))
            entries[index] = name, _bytes(content[:end], random) + content[end:]
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", kind) as archive:
        warnings.simplefilter("ignore")
        for name, content in entries:
            try:
                archive.writestr(zipfile.ZipInfo(name or "x"), content, kind)
            except ValueError:
                return None
    return stream.getvalue()


def _safetensors(data: bytes, random: Random) -> bytes | None:
    """Change the header of a safetensors file; its length is right again. None if it cannot be read."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        return None
    text = _dumped(_changed(header, random))
    return None if text is None else struct.pack("<Q", len(text)) + text + data[8 + length :]


def _lines(data: bytes, random: Random) -> bytes | None:
    """Change a JSON text, or one line of JSON lines; None if it cannot be read."""
    try:
        text = _dumped(_changed(json.loads(data), random))
        return text
    except (ValueError, RecursionError):
        pass
    lines = data.splitlines(keepends=True)
    index = random.randrange(len(lines))
    try:
        text = _dumped(_changed(json.loads(lines[index]), random))
    except (ValueError, RecursionError):
        return None
    return None if text is None else b"".join([*lines[:index], text + b"\n", *lines[index + 1 :]])


def _dumped(value: object) -> bytes | None:
    try:
        return json.dumps(value).encode()
    except (ValueError, RecursionError):
        return None


def _changed(value: object, random: Random) -> object:
    """Change one value somewhere in a JSON value."""
    places: list[tuple[dict | list, object]] = []
    waiting = [value]
    while waiting:
        each = waiting.pop()
        keys = list(each) if isinstance(each, dict) else range(len(each)) if isinstance(each, list) else ()
        places += [(each, key) for key in keys]
        waiting += [each[key] for key in keys]
    if not places:
        return random.choice(_VALUES)
    holder, key = random.choice(places)
    match random.randint(0, 7):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[random.choice(("", "x", "__metadata__", "\ud800", "\x00", "tools", str(key) + "2"))] = holder.pop(
                key
            )
        case 1:
            holder.insert(key, holder[key])
        case 2:
            other, place = random.choice(places)
            holder[key] = json.loads(json.dumps(other[place]))
        case 3:
            holder[key] = nested(random.choice((50, 300, 900, 990)), random.choice(("[", "{")))
        case 4 if isinstance(holder[key], int | float):
            holder[key] = holder[key] + random.choice((1, -1, 2**31, 0.5)) if abs(holder[key]) < 1e300 else 0
        case 5 if isinstance(holder[key], str):
            holder[key] += random.choice(("\x00", "x", "\ud800", "\n", " ", "é" * 2000))
        case _:
            holder[key] = random.choice(_VALUES)
    return value


def nested(depth: int, kind: str = "[") -> object:
    """Return lists or objects within each other."""
    value: object = 1
    for _ in range(depth):
        value = [value] if kind == "[" else {"a": value}
    return value
