"""A bar chart as SVG, on a logarithmic scale."""

from __future__ import annotations

import math
from html import escape

WIDTH, BAR, GAP, LABELS, TOP, BOTTOM = 860, 26, 12, 270, 56, 34
FONT = "font-family='system-ui, sans-serif'"


def svg(title: str, unit: str, bars: list[tuple[str, float]]) -> str:
    """`bars` are names and positive numbers, from top to bottom."""
    low = math.floor(math.log10(min(value for _, value in bars) / 1.5))
    high = math.ceil(math.log10(max(value for _, value in bars)))
    room = WIDTH - LABELS - 80
    bottom = TOP + len(bars) * (BAR + GAP)

    def x(value: float) -> float:
        return LABELS + room * (math.log10(value) - low) / (high - low)

    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {bottom + BOTTOM}' {FONT} font-size='14'>",
        "<rect width='100%' height='100%' fill='white'/>",
        f"<text x='12' y='26' font-size='15' font-weight='600'>{escape(title)}</text>",
    ]
    for exponent in range(low, high + 1):
        at, label = x(10.0**exponent), f"{10.0**exponent:g}"
        parts.append(f"<line x1='{at:.1f}' x2='{at:.1f}' y1='{TOP - 8}' y2='{bottom}' stroke='#ddd'/>")
        parts.append(f"<text x='{at:.1f}' y='{bottom + 14}' text-anchor='middle' fill='#666' font-size='11'>{label}</text>")
    for i, (name, value) in enumerate(bars):
        y = TOP + i * (BAR + GAP)
        middle = y + BAR / 2 + 5
        parts.append(f"<text x='{LABELS - 10}' y='{middle}' text-anchor='end'>{escape(name)}</text>")
        parts.append(f"<rect x='{LABELS}' y='{y}' width='{x(value) - LABELS:.1f}' height='{BAR}' rx='3' fill='#3b6ea5'/>")
        parts.append(f"<text x='{x(value) + 8:.1f}' y='{middle}'>{value:.3g} ms</text>")
    parts.append(f"<text x='{LABELS}' y='{bottom + 29}' fill='#666' font-size='11'>{escape(unit)}</text>")
    return "\n".join([*parts, "</svg>", ""])
