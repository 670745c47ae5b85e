"""Shows the figures: tables for people, the part of docs/compare-qemu.md that is measured, a picture,
and a page with charts."""

import json
import math
from html import escape
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

from ..errors import BAD_REQUEST, MACHINE_LACKS, LabError
from .evaluation import Spread, Summary

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
_CHART_JS = Path("/usr/share/javascript/chart.js/Chart.min.js")
_TEMPLATE = Path(__file__).with_name("report.html")

# Name of the figure, head of its column, in the order of the tables.
_TABLES: Tuple[Tuple[str, Tuple[Tuple[str, str], ...]], ...] = (
    (
        "What real time has more than the guest's clocks, behind the move: median / worst",
        (
            ("blackout_ns", "blackout"),
            ("tsc_lost_ns", "TSC lost"),
            ("kvmclock_lost_ns", "kvmclock lost"),
            ("monotonic_lost_ns", "MONOTONIC lost"),
            ("realtime_wrong_ns", "REALTIME wrong for"),
        ),
    ),
    (
        "How far the clocks are from what is promised, and from one another: median / worst",
        (
            ("tsc_seam_ns", "TSC seam"),
            ("kvmclock_seam_ns", "kvmclock seam"),
            ("monotonic_seam_ns", "MONOTONIC seam"),
            ("tsc_beside_kvmclock_ns", "TSC against kvmclock"),
            ("skew_ticks", "vCPU skew"),
            ("kvmclock_beside_certificate_ns", "kvmclock against certificate"),
        ),
    ),
)
_CHARTED = (
    ("tsc_seam_ns", "TSC seam", "#1a5fb4"),
    ("kvmclock_seam_ns", "kvmclock seam", "#1b7f4b"),
    ("monotonic_lost_ns", "MONOTONIC lost", "#b36b00"),
    ("realtime_wrong_ns", "REALTIME wrong", "#b3261e"),
)


def shown(value: int, unit: str = "ns") -> str:
    """Three digits, but whole numbers below 10 000 ns as they are; never 0 for what is not."""
    if unit != "ns" or abs(value) < 10_000:
        return f"{value} {unit}" if value else "0"
    for name, size in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if abs(value) >= size:
            digits = max(0, 2 - int(math.log10(abs(value) / size)))
            return f"{value / size:.{digits}f} {name}"
    raise AssertionError("10 000 ns are at least 1 us")


def cell(summary: Summary, name: str) -> str:
    spread = summary.spreads.get(name)
    unit = "ticks" if name.endswith("_ticks") else "ns"
    if name == "realtime_wrong_ns" and summary.never_right:
        return _not_repaired(summary, spread)
    if spread is None:
        return "-"
    median, worst = shown(spread.median, unit), shown(spread.worst, unit)
    return median if spread.median == spread.worst else f"{median} / {worst}"


def _not_repaired(summary: Summary, spread: Optional[Spread]) -> str:
    limit = f"not repaired in {shown(summary.observed_ns_max)}"
    if summary.never_right == summary.moves or spread is None:
        return limit
    return f"{shown(spread.median)} / {limit} ({summary.never_right})"


def tables(summaries: Sequence[Summary]) -> str:
    """Markdown that is aligned as it stands."""
    parts = []
    for title, columns in _TABLES:
        rows = [["", *(head for _, head in columns)]]
        rows += [[one.column.title, *(cell(one, name) for name, _ in columns)] for one in summaries]
        parts.append(f"**{title}**\n\n{aligned(rows)}")
    rows = [["", "moves", "failed", "steps back", "seen by the guest", "seconds a move"]]
    for one in summaries:
        seconds = f"{one.seconds / one.moves:.1f}" if one.moves else "-"
        rows.append([one.column.title, str(one.moves), str(len(one.failed)), _steps_back(one),
                     _seen(one), seconds])  # fmt: skip
    return "\n".join([*parts, f"**The runs**\n\n{aligned(rows)}"])


def _steps_back(summary: Summary) -> str:
    if summary.backward is None:
        return "not asked"
    return str(summary.backward + (summary.watched.backward if summary.watched else 0))


def _seen(summary: Summary) -> str:
    """How often `continuo watch` in the guest found the seam that the lines outside say."""
    watched = summary.watched
    if watched is None:
        return "not asked"
    parts = []
    if watched.agree or watched.disagree:
        parts.append(f"{watched.agree} of {watched.agree + watched.disagree} within {shown(watched.bound_ns)}")
    if watched.unseen:
        parts.append(f"nothing in {watched.unseen} (at most {shown(watched.unseen_seam_ns)})")
    return "; ".join(parts)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        cells = [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:]))]
        lines.append(f"| {' | '.join(cells)} |")
        if number == 0:
            marks = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
            lines.append(f"| {' | '.join(marks)} |")
    return "\n".join(lines) + "\n"


def write_into(page: Path, measured: str) -> None:
    """Puts it between the two marks of a page that people have written."""
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise LabError(BAD_REQUEST, f"{page} has no place for the tables",
                       f"it needs a line {BEGIN} and behind it a line {END}")  # fmt: skip
    head, rest = text.split(BEGIN)
    page.write_text(f"{head}{BEGIN}\n{measured}{END}{rest.split(END)[1]}", encoding="utf-8")


# ---- the picture

_LEFT, _WIDTH, _ROW, _TOP = 330, 640, 17, 64
_DECADES = 11  # 1 ns to 100 s; what is 0 stands left of them


def _x(value: int) -> float:
    if value == 0:
        return _LEFT + 14.0
    decades = min(max(math.log10(abs(value)), 0.0), float(_DECADES))
    return _LEFT + 40 + decades * (_WIDTH - 40) / _DECADES


def svg(summaries: Sequence[Summary]) -> str:
    """A dot for each move, on a logarithmic scale whose left end is exactly 0."""
    lines, y = [], _TOP
    for one in summaries:
        y += 8
        lines.append(_text(12, y + 12, f"{one.column.title}  (n = {one.moves})", "600"))
        for name, label, colour in _CHARTED:
            lines += _dots(one, name, label, colour, y)
            y += _ROW
    height = y + 30
    axis = []
    for decade, label in ((0, "1 ns"), (3, "1 us"), (6, "1 ms"), (9, "1 s"), (11, "100 s")):
        x = _x(10**decade)
        axis.append(f'<line x1="{x:.1f}" y1="{_TOP - 6}" x2="{x:.1f}" y2="{y + 4}" stroke="#d9dee6"/>')
        axis.append(_text(x, _TOP - 12, label, "400", "middle"))
    axis.append(_text(_x(0), _TOP - 12, "0", "600", "middle"))
    head = _text(12, 22, "The clocks of a Linux guest behind a live migration, each dot one move", "600")
    width = _LEFT + _WIDTH + 40
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="DejaVu Sans, sans-serif" font-size="12">\n'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n'
        + "\n".join([head, *axis, *lines]) + "\n</svg>\n"
    )  # fmt: skip


def _dots(summary: Summary, name: str, label: str, colour: str, y: int) -> List[str]:
    spread = summary.spreads.get(name)
    middle = y + _ROW // 2
    lines = [_text(_LEFT - 8, middle + 4, label, "400", "end", colour)]
    for value in spread.values if spread else ():
        lines.append(f'<circle cx="{_x(value):.1f}" cy="{middle}" r="3.4" fill="{colour}" fill-opacity="0.45"/>')
    if name == "realtime_wrong_ns" and summary.never_right:
        x, text = _x(summary.observed_ns_max), f"not repaired ({summary.never_right})"
        lines.append(f'<path d="M{x:.1f} {middle - 5} l9 5 l-9 5 z" fill="{colour}"/>')
        lines.append(_text(x + 13, middle + 4, text, "400", "start", colour))
    return lines


def _text(x, y, text, weight, anchor="start", colour="#1c2430") -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" font-weight="{weight}" text-anchor="{anchor}" '
        f'fill="{colour}">{escape(text)}</text>'
    )


# ---- the page with charts


def html(document: Dict) -> str:
    if not _CHART_JS.exists():
        raise LabError(MACHINE_LACKS, f"{_CHART_JS} is missing", "apt-get install libjs-chart.js")
    page = _TEMPLATE.read_text(encoding="utf-8")
    # No "</script" and no "<!--" can stand in the data.
    data = json.dumps({**document, "charted": _CHARTED}).replace("<", "\\u003c")
    for mark, content in (("@DATA@", data), ("@CHART_JS@", _CHART_JS.read_text(encoding="utf-8"))):
        page = page.replace(mark, content)
    return page
