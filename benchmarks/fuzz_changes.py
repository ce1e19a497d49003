"""What damages the inputs of fuzz.py: bytes, numbers and the structure of files of every kind."""

from __future__ import annotations

import copy
import gzip
import io
import json
import zipfile
from typing import Any

import numpy as np
import yaml
from pycocotools import mask as coco_mask

ODD_VALUES: list[Any] = [
    *[-1, 0, 1, 2**15, 2**31, 2**63, -(2**40), 10**30, 1.5, 1e300, float("nan"), float("inf"), True, False, None],
    *["", "3", "a\0b", "\ud800", "x" * 300, "../../x", "=1+1", [], {}, [[]], [1], {"a": 1}],
]


def odd_value(random: np.random.Generator) -> Any:
    return copy.deepcopy(ODD_VALUES[random.integers(0, len(ODD_VALUES))])


def change_bytes(random: np.random.Generator, data: bytes) -> bytes:
    """Change a few bytes: other ones, missing, repeated or cut off; numbers of 1, 2, 4 or 8 bytes at their limits."""
    changed = bytearray(data)
    for _ in range(random.integers(1, 5)):
        at = int(random.integers(0, len(changed) + 1))
        if random.random() < 0.4:
            at = min(at, int(random.integers(0, 200)))  # headers decide most
        length = int(2 ** random.integers(0, 6))
        action = random.integers(0, 7)
        if action == 0:
            changed[at : at + 1] = random.bytes(1)
        elif action == 1:
            del changed[at : at + length]
        elif action == 2:
            changed[at:at] = changed[at : at + length]
        elif action == 3:
            changed[at:at] = random.bytes(length)
        elif action == 4 and random.random() < 0.3:
            del changed[at:]
        else:
            width = int(2 ** random.integers(0, 4))
            number = [0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), 2 ** (4 * width), 8][random.integers(0, 6)]
            order = "little" if random.random() < 0.7 else "big"
            changed[at : at + width] = number.to_bytes(width, order)
    return bytes(changed)


def change_tree(random: np.random.Generator, value: Any) -> Any:
    """Change values somewhere in nested lists and dicts: odd ones, missing, twice, or from another place."""
    value = copy.deepcopy(value)
    for _ in range(random.integers(1, 4)):
        places = _places(value)
        if not places:
            return odd_value(random)
        holder, key = places[random.integers(0, len(places))]
        action = random.integers(0, 6)
        if action == 0:
            del holder[key]
        elif action == 1 and isinstance(holder, list):
            holder.append(holder[key])
        elif action == 2:
            other, there = places[random.integers(0, len(places))]
            holder[key] = copy.deepcopy(other[there])
        elif action == 3 and isinstance(holder, dict):
            holder[str(odd_value(random))] = holder.pop(key)
        elif action == 4 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
            holder[key] = holder[key] * float(random.choice([-1, 0.5, 1e6])) + float(random.integers(-2, 3))
        else:
            holder[key] = odd_value(random)
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    found = [(value, key) for key, _ in items]
    for _, item in items:
        if isinstance(item, (dict, list)):
            found += _places(item)
    return found


def change_json(random: np.random.Generator, data: bytes) -> bytes:
    """Change the tree of a JSON file (gzip or not), its bytes, or both."""
    is_packed = data[:2] == b"\x1f\x8b"
    if random.random() < 0.1:
        return change_bytes(random, data)
    text = gzip.decompress(data) if is_packed else data
    if random.random() < 0.8:
        text = json.dumps(change_tree(random, json.loads(text))).encode()
    else:
        text = change_bytes(random, text)
    if random.random() < 0.002:
        place = int(random.integers(0, len(text)))
        text = text[:place] + [b"[" * 100_000, b" " * 2**27, b"9" * 10_000][random.integers(0, 3)] + text[place:]
    return gzip.compress(text, 1) if is_packed else text


YAML_PARTS = [
    "[" * 5000,
    "2018-99-99",
    "7" * 6000,
    "1" + ":59" * 50_000,
    "&a [*a]",
    "{<<: {a: 1}}",
    "!!python/name:os.x",
]


def change_yaml(random: np.random.Generator, data: bytes) -> bytes:
    if random.random() < 0.3:
        return change_bytes(random, data)
    text = yaml.safe_dump(change_tree(random, yaml.safe_load(data)), allow_unicode=False)
    if random.random() < 0.2:
        line = text.split("\n")[int(random.integers(0, text.count("\n") + 1))]
        text = text.replace(line, f"{line.partition(':')[0]}: {YAML_PARTS[random.integers(0, len(YAML_PARTS))]}", 1)
    return text.encode("utf-8", "replace")


def change_archive(random: np.random.Generator, data: bytes) -> bytes:
    """Change what a part of a zip archive holds, or the bytes of the archive or of any other file."""
    return (
        change_parts(random, data) if data.startswith(b"PK") and random.random() < 0.7 else change_bytes(random, data)
    )


def change_parts(random: np.random.Generator, data: bytes) -> bytes:
    """Change what a part of a zip archive holds, mostly the first; JSON as such. The archive itself stays whole."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(stream, "w") as archive:
        names = source.namelist()
        chosen = names[0] if random.random() < 0.7 else names[random.integers(0, len(names))]
        for name in names:
            content = source.read(name)
            if name == chosen:
                content = (change_json if content.startswith(b"{") else change_bytes)(random, content)
            archive.writestr(name, content)
    return stream.getvalue()


def change_text(random: np.random.Generator, data: bytes) -> bytes:
    """Change words of a table or list, or its bytes."""
    if random.random() < 0.3:
        return change_bytes(random, data)
    words = data.decode("latin-1").replace(",", " , ").split(" ")
    for _ in range(random.integers(1, 4)):
        words[random.integers(0, len(words))] = str(odd_value(random))
    return "".join(words).encode("utf-8", "replace") if b"," in data else " ".join(words).encode("utf-8", "replace")


def change_rle(random: np.random.Generator, _: bytes) -> bytes:
    """Noise of any density, or blocks, which give long runs; valid, or with damaged text, counts or sizes."""
    height, width = (int(side) for side in random.integers(1, 25, 2))
    mask = random.random((height, width)) < random.random()
    if random.random() < 0.5:
        mask[:] = False
        for _ in range(random.integers(0, 4)):
            y, x = random.integers(0, height), random.integers(0, width)
            mask[y : y + random.integers(1, 12), x : x + random.integers(1, 12)] ^= True
    size: list[Any] = [height, width]
    text = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))["counts"].decode()
    kind = random.integers(0, 5)
    odd = odd_value(random)
    if kind == 0:
        return json.dumps({"size": size, "counts": text, "valid": True}).encode()
    if kind == 1:
        text = change_bytes(random, text.encode()).decode("latin-1")
    elif kind == 2:
        text = random.bytes(int(random.integers(0, 20))).decode("latin-1")
    elif kind == 3:
        size[random.integers(0, 2)] = odd
        size = [size, size[:1], [*size, 1], odd][random.integers(0, 4)]
    else:
        cuts = np.sort(random.integers(0, height * width + 1, random.integers(0, 8)))
        counts: list[Any] = np.diff(cuts, prepend=0, append=height * width).tolist()
        if random.random() < 0.7:
            counts[random.integers(0, len(counts))] = odd
        return json.dumps({"size": size, "counts": counts}).encode()
    return json.dumps({"size": size, "counts": text}).encode()
