"""A manifest's hash chain: an edited, removed, added or moved line is found and named.

Every line carries the SHA-256 of its own content, and a link: the SHA-256 of the link before it and
that content's. The first follows the digest of the plan; `dataset.json` keeps the last. Whoever
keeps the last link elsewhere can tell later that not a line of the dataset was changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

CONTENT, LINK = "sha256", "chain"


def chained(records: Sequence[Mapping[str, Any]], start: str) -> list[dict[str, Any]]:
    """Manifest lines with their digests and links.

    Args:
        records: manifest lines, in order.
        start: what the first link follows: the digest of the plan.
    """
    lines: list[dict[str, Any]] = []
    link = start
    for record in records:
        content = _digest(_text(record))
        link = _digest(link + content)
        lines.append({**record, CONTENT: content, LINK: link})
    return lines


def broken_links(lines: Sequence[Mapping[str, Any]], start: str, end: str) -> Iterator[str]:
    """What is wrong with the lines of a manifest, one sentence a line.

    Args:
        lines: of the manifest, as they stand there.
        start: what the first link follows.
        end: the last link, as it was written down.
    """
    before = start
    for number, line in enumerate(lines, 1):
        name = f"manifest.jsonl line {number} ({line.get('id')})"
        content = _digest(_text({k: v for k, v in line.items() if k not in (CONTENT, LINK)}))
        if content != line.get(CONTENT):
            yield f"{name}: was edited"
        elif _digest(before + content) != line.get(LINK):
            yield f"{name}: does not follow the line before it; lines were removed, added or moved"
        before = str(line.get(LINK))
    if before != end:
        yield "manifest.jsonl: does not end as dataset.json says; lines are missing or were added"


def _text(record: Mapping[str, Any]) -> str:
    return json.dumps(record, sort_keys=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
