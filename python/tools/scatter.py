"""Points on a logarithmic scale over a linear one, as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 520, 70, 30, 56, 56
COLOURS = ("#3b6ea5", "#c2571a", "#3d8a4e", "#7a4fa3")
Point = tuple[str, float, float]
"""Name, place on the linear scale, positive place on the logarithmic one."""


def svg(title: str, x_title: str, y_title: str, series: Sequence[tuple[str, Sequence[Point]]]) -> str:
    """Each of `series`, a name and points, is a line in its own colour."""
    points = [point for _, own in series for point in own]
    left, right = min(p[1] for p in points), max(p[1] for p in points)
    margin = 0.06 * (right - left or 1.0)
    left, right = left - margin, right + margin
    low = math.log10(min(p[2] for p in points)) - 0.1
    high = math.log10(max(p[2] for p in points)) + 0.1

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - left) / (right - left)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (math.log10(value) - low) / (high - low)

    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' "
        "font-family='system-ui, sans-serif' font-size='12'>",
        "<rect width='100%' height='100%' fill='white'/>",
        f"<text x='12' y='26' font-size='15' font-weight='600'>{escape(title)}</text>",
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, x_title, "middle"),
        f"<text transform='translate(18 {HEIGHT / 2}) rotate(-90)' text-anchor='middle'>{escape(y_title)}</text>",
    ]
    for value in _log_ticks(low, high):
        parts.append(_line((LEFT, y(value)), (WIDTH - RIGHT, y(value)), "#ddd"))
        parts.append(_text(LEFT - 6, y(value) + 4, f"{value:g}", "end"))
    for value in _linear_ticks(left, right):
        parts.append(_line((x(value), TOP), (x(value), HEIGHT - BOTTOM), "#eee"))
        parts.append(_text(x(value), HEIGHT - BOTTOM + 16, f"{value:g}", "middle"))
    for i, (name, own) in enumerate(series):
        colour = COLOURS[i % len(COLOURS)]
        ordered = sorted(own, key=lambda point: point[1])
        path = " ".join(f"{x(p[1]):.1f},{y(p[2]):.1f}" for p in ordered)
        parts.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='1.5'/>")
        for label, across, up in ordered:
            parts.append(f"<circle cx='{x(across):.1f}' cy='{y(up):.1f}' r='4' fill='{colour}'/>")
            parts.append(_text(x(across) + 6, y(up) - 6, label, "start", colour))
        parts.append(_text(WIDTH - RIGHT - 10, TOP + 18 * (i + 1), name, "end", colour))
    return "\n".join([*parts, "</svg>", ""])


def _line(start: tuple[float, float], end: tuple[float, float], colour: str) -> str:
    (x1, y1), (x2, y2) = start, end
    return f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='{colour}'/>"


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#444") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' fill='{colour}'>{escape(text)}</text>"


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    return [tick for tick in ticks if low <= math.log10(tick) <= high]


def _linear_ticks(left: float, right: float) -> list[float]:
    """About eight round numbers."""
    rough = (right - left) / 8
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * digit for digit in (1, 2, 5, 10) if size * digit >= rough)
    return [step * i for i in range(math.ceil(left / step), math.floor(right / step) + 1)]
