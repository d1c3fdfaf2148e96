"""Bar charts of ratios and curves as SVG, on logarithmic axes, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#2563a8", "#7aa6d6", "#d08a2e", "#8a5fa8", "#3f8f5a", "#a84848")
LEFT, RIGHT, TOP, BOTTOM = 250, 30, 70, 40
_FONT = 'font-family="system-ui, sans-serif"'


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, colour: str = "#222"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" {_FONT} font-size="{size}" fill="{colour}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = "#ddd") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _svg(title: str, width: int, height: int, names: Sequence[str], body: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{escape(title)}">'
    )
    parts = [head, f'<rect width="{width}" height="{height}" fill="#fff"/>', _text(16, 26, title, size=15)]
    at = 16.0
    for name, colour in zip(names, COLOURS, strict=False):
        parts.append(f'<rect x="{at:.1f}" y="40" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(at + 18, 50, name))
        at += 36 + 7.2 * len(name)
    return "\n".join([*parts, *body, "</svg>"]) + "\n"


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade within the range."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [tick for d in decades for m in (1, 2, 5) if low <= (tick := m * 10.0**d) <= high]


def bars(title: str, labels: Sequence[str], values: Mapping[str, Sequence[float | None]]) -> str:
    """Horizontal bars for each label, one for each name, from 1 to the ratio."""
    present = [v for row in values.values() for v in row if v]
    low, high = min([0.02, *present]) / 1.2, max([2.0, *present]) * 1.2
    thick, gap, width = 9, 10, 860
    slot = thick * len(values) + gap
    height = TOP + slot * len(labels) + BOTTOM

    def x(value: float) -> float:
        return LEFT + (width - LEFT - RIGHT) * math.log(value / low) / math.log(high / low)

    body = []
    for tick in _ticks(low, high):
        body.append(_line(x(tick), TOP, x(tick), height - BOTTOM, "#555" if tick == 1 else "#ddd"))
        body.append(_text(x(tick), height - BOTTOM + 18, f"{tick:g}", anchor="middle", size=11))
    for i, label in enumerate(labels):
        y = TOP + i * slot + gap / 2
        body.append(_text(LEFT - 10, y + (slot - gap) / 2 + 4, label, anchor="end"))
        for k, row in enumerate(values.values()):
            value = row[i] if i < len(row) else None
            if value:
                left, right = sorted((x(1), x(value)))
                body.append(
                    f'<rect x="{left:.1f}" y="{y + k * thick:.1f}" width="{max(right - left, 1):.1f}" height="{thick - 1}" '
                    f'fill="{COLOURS[k % len(COLOURS)]}"/>'
                )
    return _svg(title, width, height, list(values), body)


def curves(title: str, xs: Sequence[int], values: Mapping[str, Sequence[float]]) -> str:
    """One curve for each name over the same x values."""
    width, height, left = 860, 360, 60
    present = [v for row in values.values() for v in row]
    low, high = min(present) / 1.3, max(present) * 1.3

    def x(value: float) -> float:
        return left + (width - left - RIGHT) * math.log(value / xs[0]) / math.log(xs[-1] / xs[0])

    def y(value: float) -> float:
        return height - BOTTOM - (height - TOP - BOTTOM) * math.log(value / low) / math.log(high / low)

    body = []
    for tick in _ticks(low, high):
        body.append(_line(left, y(tick), width - RIGHT, y(tick)))
        body.append(_text(left - 8, y(tick) + 4, f"{tick:g}", anchor="end", size=11))
    body += [_text(x(n), height - BOTTOM + 18, f"{n:,}", anchor="middle", size=11) for n in xs]
    for (_, row), colour in zip(values.items(), COLOURS, strict=False):
        points = [(x(n), y(v)) for n, v in zip(xs, row, strict=True)]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        body += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>' for px, py in points]
    return _svg(title, width, height, list(values), body)
