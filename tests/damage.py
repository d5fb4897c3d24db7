"""Files damaged by chance, and what becomes of them: the means of `test_damage.py`.

A kind of input is a function that makes a good one and a function that reads it as the commands do. A case is one
damage, which follows from the kind and a number alone. `python tests/damage.py GOOD` tries the cases that stdin names
in this process, and tells of each in a line of JSON, so that a crash of the process is told apart too.
"""

import io
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import stat
import struct
import sys
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

SECONDS, MEGABYTES, LONGEST = 20, 1024, 1000  # that a case may take, and characters of a message
RAW = {  # what json.dumps cannot write: put in place of a text
    "@deep": "[" * 100_000 + "]" * 100_000,
    "@deeper": '{"a":' * 5_000 + "1" + "}" * 5_000,
    "@digits": "9" * 5_000,
    "@huge": "1e400",
    "@nan": "NaN",
    "@twice": '{"a": 1, "a": 2}',
}
VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 2, 7, 2**31, 2**63, 10**30, 0.5, -0.5, 1e-320, 1e308, "", " ", "0", "1", "none", "..", "."),
    *(
        "../x",
        "/etc/passwd",
        "/dev/zero",
        "a\0b",
        "\ud800",
        "\x1b[31mred\x07",
        "a\nb",
        "\u202eevil",
        "x" * 300,
        "x" * 200_000,
    ),
    *("a/" * 3_000, "%s%n{0}", "1e-9", "١٢", "NaN", [], {}, [[]], {"": {}}, [None], [1, 2], {"a": 1}, *RAW),
]


# Damages ----------------------------------------------------------------------------------------------------------


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all that plain containers hold."""
    for key, below in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(below, (*path, key))


def altered(value: Any, chance: random.Random, values: list[Any] = VALUES) -> Any:
    """Plain containers with one thing in them replaced, removed, renamed, put twice or wrapped."""
    found = list(places(value))
    if not found or chance.random() < 0.05:
        return chance.choice(values)
    *path, key = chance.choice(found)
    holder = value
    for name in path:
        holder = holder[name]
    match chance.choice(("value", "value", "value", "remove", "rename", "wrap", "twice")):
        case "value":
            holder[key] = chance.choice(values)
        case "remove":
            del holder[key]
        case "rename" if isinstance(holder, dict):
            holder[str(chance.choice(values))] = holder.pop(key)
        case "twice" if isinstance(holder, list):
            holder.insert(key, holder[key])
        case _:
            holder[key] = chance.choice(([holder[key]], {"a": holder[key]}, str(holder[key]), [holder[key]] * 3))
    return value


def written(value: Any, yaml_text: bool = False) -> bytes:
    """As JSON, which YAML is too, with `RAW` in place of its names."""
    text = yaml.safe_dump(value, allow_unicode=True) if yaml_text else json.dumps(value)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw).replace(f"'{name}'", raw).replace(f" {name}\n", f" {raw}\n")
    return text.encode("utf-8", "surrogatepass")


def of_json(data: bytes, chance: random.Random) -> bytes:
    return written(altered(json.loads(data), chance))


def of_json_lines(data: bytes, chance: random.Random) -> bytes:
    return b"".join(written(row) + b"\n" for row in altered([json.loads(line) for line in data.splitlines()], chance))


def of_yaml(data: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.15:  # names for what was said before, each twice what the last one is
        doubled = "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, chance.choice((5, 40))))
        return data + b"a0: &a0 [x]\n" + doubled.encode()
    return written(altered(yaml.safe_load(data), chance), yaml_text=chance.random() < 0.5)


def of_text(data: bytes, chance: random.Random) -> bytes:
    """A number, a field or a line of a text."""
    pattern = chance.choice((rb"\d+", rb"[^,\n\t]+", rb"[^\n]+\n", rb"[^\n]*", rb"."))
    found = list(re.finditer(pattern, data))
    if not found:
        return b"x"
    match, value = chance.choice(found), chance.choice(VALUES)
    text = value if isinstance(value, str) else json.dumps(value)
    new = chance.choice((RAW.get(text, text).encode("utf-8", "surrogatepass"), match[0] * 2, b"", b'"'))
    return data[: match.start()] + new + data[match.end() :]


def of_bytes(data: bytes, chance: random.Random) -> bytes:
    """Bytes cut off, changed, put twice, taken out, or great numbers in their place."""
    at = chance.randrange(min(len(data), 4096) if chance.random() < 0.5 else max(len(data), 1)) if data else 0
    some = chance.choice((1, 2, 4, 8, 100, 5000))
    match chance.choice(("cut", "flip", "flip", "number", "number", "noise", "zero", "twice", "out", "tail")):
        case "cut":
            return data[:at]
        case "flip":
            changed = bytearray(data)
            for _ in range(chance.choice((1, 1, 5, 50)) if data else 0):
                changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            return bytes(changed)
        case "number":
            size = chance.choice((1, 2, 4, 8))
            number = chance.choice(
                (2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1, 2 ** (4 * size), 0)
            )
            return data[:at] + number.to_bytes(size, chance.choice(("little", "big"))) + data[at + size :]
        case "noise":
            return data[:at] + chance.randbytes(some) + data[at + some :]
        case "zero":
            return data[:at] + bytes(some) + data[at + some :]
        case "twice":
            return data[:at] + data[at : at + some] * 2 + data[at + some :]
        case "out":
            return data[:at] + data[at + some :]
        case _:
            return data + chance.choice((b"\0", b"\n", data, chance.randbytes(some)))


def of_pickle(data: bytes, chance: random.Random) -> bytes:
    values = [*VALUES[: -len(RAW)], 10**5000, float("nan"), b"\xff", (1, 2), {1, 2}, 1j]
    return pickle.dumps(altered(pickle.loads(data), chance, values), chance.choice((0, 2, 4, 5)))


def of_png(data: bytes, chance: random.Random) -> bytes:
    """Another size, depth or kind of colour, said with a right checksum."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 33:
        return of_bytes(data, chance)
    sides = [
        chance.choice((0, 1, 7, 8192, 60_000, 10**6, 2**31 - 1, side)) for side in struct.unpack(">II", data[16:24])
    ]
    rest = chance.choice((data[24:29], data[24:29], chance.randbytes(5)))
    head = b"IHDR" + struct.pack(">II", *sides) + rest
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]


def of_zip(data: bytes, chance: random.Random) -> bytes:
    """Entries with other names or content, lost, twice or compressed, or many of them."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as old:
            entries = [(name, old.read(name)) for name in old.namelist()]
    except zipfile.BadZipFile:
        return of_bytes(data, chance)
    at = chance.randrange(len(entries))
    name, content = entries[at]
    compression = chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    match chance.choice(("name", "content", "lost", "twice", "many", "deep", "bomb", "slash", "flags")):
        case "name":
            odd = (
                "",
                "..",
                "../../x",
                "/etc/x",
                "a\x1b[31m\nb.png",
                "x" * 300,
                "x" * 60_000,
                "C:\\x",
                "a\\b",
                name.upper(),
            )
            entries[at] = chance.choice([*odd, f"./{name}", f"{name}/{name}"]), content
        case "content":
            entries[at] = name, damaged(name, content, chance)
        case "lost":
            del entries[at]
        case "twice":
            entries.append((name, chance.choice((content, b""))))
        case "many":
            entries += [(f"{name}-{i}", b"") for i in range(20_000)]
        case "deep":
            entries += [(f"{i}" + "/a" * 32_000, b"") for i in range(10)]
        case "bomb":
            compression = zipfile.ZIP_DEFLATED
            inner = chance.choice((name, "predict.json", "predictions.json"))
            filler = chance.choice((bytes(100_000_000), b"[" + b"[]," * 10_000_000 + b"0]", b"[" * 30_000_000))
            entries = [entry for entry in entries if entry[0] != inner] + [(inner, filler)]
        case "slash":
            entries.append((f"{name}/", b""))
        case _:
            pass
    with io.BytesIO() as target, warnings.catch_warnings(action="ignore"):
        with zipfile.ZipFile(target, "w", compression, compresslevel=1) as new:
            for each, filling in entries:
                new.writestr(each, filling)
        return target.getvalue()


def of_safetensors(data: bytes, chance: random.Random) -> bytes:
    """Another header of the right length."""
    size = int.from_bytes(data[:8], "little")
    head = of_json(data[8 : 8 + size], chance)
    return len(head).to_bytes(8, "little") + head + data[8 + size :]


STRUCTURED: dict[str, Callable[[bytes, random.Random], bytes]] = {
    **{".json": of_json, ".jsonl": of_json_lines, ".yaml": of_yaml, ".csv": of_text, ".txt": of_text, ".p": of_pickle},
    **{".png": of_png, ".zip": of_zip, ".pth": of_zip, ".safetensors": of_safetensors, ".pkl": of_pickle},
}


def damaged(name: str, data: bytes, chance: random.Random) -> bytes:
    how = chance.choice((STRUCTURED.get(Path(name).suffix, of_bytes),) * 3 + (of_text, of_bytes))
    try:
        return how(data, chance)
    except (ValueError, LookupError, pickle.PickleError, yaml.YAMLError, RecursionError, TypeError, AttributeError):
        return of_bytes(data, chance)


def damage(folder: Path, chance: random.Random) -> str:
    """Damage one of the files in a folder; which, and how."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    kinds = sorted({path.suffix for path in files})  # rather than the many frames
    suffix = chance.choice(kinds)
    path = chance.choice([path for path in files if path.suffix == suffix])
    name, data = path.relative_to(folder).as_posix(), path.read_bytes()
    if chance.random() < 0.92:
        path.write_bytes(damaged(path.name, data, chance))
        return name
    path.unlink()
    match chance.choice(("missing", "folder", "pipe", "device", "itself", "other", "nowhere", "odd name")):
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "itself":
            path.symlink_to(path.name)
        case "nowhere":
            path.symlink_to("nowhere")
        case "other":
            others = [other for other in files if other != path]
            path.write_bytes(chance.choice(others).read_bytes() if others else b"")
        case "odd name":
            path.with_name(os.fsdecode(b"\xff\x1b[31m\n") + path.name).write_bytes(data)
        case _:
            pass
    return f"{name} (the file itself)"


# Cases ------------------------------------------------------------------------------------------------------------


def state(folder: Path) -> dict[str, Any]:
    """All that lies in a folder, to see what was changed."""
    found = {}
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(place, name)
            status = path.lstat()
            found[os.path.relpath(path, folder)] = status.st_mode, stat.S_ISREG(status.st_mode) and path.read_bytes()
    return found


def memory(reset: bool = False) -> int:
    """Megabytes that this process has, or has had at most since the last time that this was asked."""
    status = Path("/proc/self/status").read_text()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return int(re.search(r"VmRSS:\s+(\d+)" if reset else r"VmHWM:\s+(\d+)", status)[1]) // 1024  # type: ignore[index]


class Late(BaseException):
    """Which nobody takes for a fault of a file."""


def attempt(
    read: Callable[[Path, random.Random], Any], writes: str, folder: Path, chance: random.Random
) -> dict[str, Any]:
    """Read what is damaged: whether that went as it should, and what it took. `writes` is a pattern of the files that
    may be written also before something is refused."""
    from dshmp.common.errors import UserError

    before, own, begun, fault = state(folder), memory(reset=True), time.monotonic(), None
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    signal.setitimer(signal.ITIMER_PROF, 1.5 * SECONDS)  # ends the process, which other code than Python's keeps busy
    try:
        read(folder, chance)
    except (Exception, SystemExit, Late) as error:
        fault = error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
    outcome = "too slow" if isinstance(fault, Late) else "refused" if isinstance(fault, UserError) else "traceback"
    outcome, told = ("read", "") if fault is None else (outcome, str(fault))
    if outcome in ("traceback", "too slow"):
        told = "".join(traceback.format_exception(fault, limit=-12, chain=False))[-2500:]
    seconds, taken = time.monotonic() - begun, memory() - own
    after = state(folder)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    changed = [name for name in changed if not re.fullmatch(writes, name)]
    if outcome == "refused":
        if "\n" in told or (len(told) > LONGEST):
            outcome = "no line"
        elif changed:
            outcome, told = "changed", f"{changed[:5]}: {told}"
    if outcome in ("read", "refused") and (seconds > SECONDS or taken > MEGABYTES):
        outcome = "too much"
    return {"outcome": outcome, "told": told[-2500:], "seconds": seconds, "memory": taken, "changed": changed[:5]}


def cases(good: Path, wanted: list[tuple[str, int]]) -> Iterator[dict[str, Any]]:
    """Damage copies of `good / kind`, and read them."""
    from test_damage import KINDS

    work = Path(f"{good}-{os.getpid()}")
    for kind, number in wanted:
        chance = random.Random(f"{kind} {number}")
        folder = work / kind
        shutil.copytree(good / kind, folder)
        what = damage(folder, chance)
        yield {"kind": kind, "number": number, "what": what} | attempt(*KINDS[kind][1:], folder, chance)
        shutil.rmtree(work, ignore_errors=True)


def main(good: Path) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (6 * 2**30,) * 2)  # rather than that the machine stands still
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def late(*_: object) -> None:
        raise Late

    signal.signal(signal.SIGALRM, late)
    log = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for found in cases(good, json.load(sys.stdin)):
        print(json.dumps(found), file=log, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
