"""What filters rejected, and what that left unfilled."""

from __future__ import annotations

from collections import Counter
from typing import Any

from medgen.report import wording
from medgen.report.results import RunResults


def rejections(results: RunResults) -> dict[str, Any]:
    """Draws that filters rejected by reason, most frequent first; empty where nothing judged.

    Returns:
        "rows" (reason, count and share of all draws), "drawn", "rejected", "kept", "asked",
        "unfilled", "budget" and "filters" (their settings in words).
    """
    judged = results.dataset.get("filters")
    if not judged:
        return {}
    counts = Counter(str(line.get("reason", "")) for line in results.rejected)
    kept, rejected = len(results.manifest), len(results.rejected)
    drawn = kept + rejected
    return {
        "rows": [
            {"reason": reason, "count": count, "share": count / drawn}
            for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        ],
        "drawn": drawn,
        "rejected": rejected,
        "kept": kept,
        "asked": int(results.dataset.get("asked", kept)),
        "unfilled": int(results.dataset.get("unfilled", 0)),
        "budget": judged.get("budget"),
        "filters": [_words(each) for each in judged.get("filters", ())],
    }


def _words(section: Any) -> str:
    settings = [
        f"{key} {wording.plain(value)}"
        for key, value in section.items()
        if key not in ("type", "digest")
    ]
    return f"{section['type']}" + (f" ({', '.join(settings)})" if settings else "")
