"""A histogram of two sets of values as inline SVG: the first above the axis, the second below, a bound as a line."""

import math
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

WIDTH, HEIGHT = 380, 182
LEFT, RIGHT, TOP, BOTTOM = 8, 372, 22, 166
BINS = 48
TAIL = 0.5
"""Percent of the values at either end that do not widen the range; they are counted in the outermost bins."""
WIDEST = 3.0
"""How many times the range may grow for the bound to be inside."""


@dataclass(frozen=True)
class Histogram:
    """Values of two sets under one title; NaN and infinities are left out.

    labels name the sets, kinds colour them (classes of page_style), note says what the bound does.
    """

    title: str
    above: np.ndarray
    below: np.ndarray
    bound: float | None = None
    note: str = ""
    labels: tuple[str, str] = ("kept", "dropped")
    kinds: tuple[str, str] = ("kept", "dropped")

    def html(self) -> Markup:
        """A figure with an SVG and the counts as its caption."""
        above, below = (values[np.isfinite(values)] for values in (self.above, self.below))
        counts = f"{above.size:,} {self.labels[0]} above the axis, {below.size:,} {self.labels[1]} below"
        if above.size + below.size:
            low, high = (short(float(end)) for end in np.quantile(np.concatenate([above, below]), [0, 1]))
            counts += f"; values from {low} to {high}"
        drawing = _drawing(above, below, self.bound, self.kinds) if above.size + below.size else Markup("")
        return Markup(
            "<figure><figcaption><b>{}</b><span>{}</span></figcaption>"
            '<svg viewBox="0 0 {} {}" role="img" aria-label="Histogram of {}: {}">{}</svg>'
            "<figcaption><span>{}</span></figcaption></figure>"
        ).format(self.title, self.note, WIDTH, HEIGHT, self.title, counts, drawing, counts)


def _drawing(above: np.ndarray, below: np.ndarray, bound: float | None, kinds: tuple[str, str]) -> Markup:
    values = np.concatenate([above, below]).astype(np.float64)
    low, high, inside = value_range(values, bound)
    edges = np.linspace(low, high, BINS + 1)
    up, down = (np.histogram(np.clip(part, low, high), edges)[0] for part in (above, below))
    scale = (BOTTOM - TOP - 2) / max(int(up.max()) + int(down.max()), 1)
    axis = TOP + 1 + scale * int(up.max())
    parts = [_bars(up, axis, -scale, kinds[0]), _bars(down, axis, scale, kinds[1])]
    parts.append(Markup('<line class="axis" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>').format(LEFT, RIGHT, y=axis))
    parts += [_tick(tick, low, high) for tick in ticks(low, high)]
    if bound is not None:
        parts.append(_bound(bound, low, high, inside))
    return Markup("").join(parts)


def value_range(values: np.ndarray, bound: float | None) -> tuple[float, float, bool]:
    """Ends of the axis without rare outliers, and whether the bound is between them.

    It is if values lie on both sides of it, or if it is not far away from all of them.

    >>> value_range(np.array([1.0, 2.0]), 3.0)
    (1.0, 3.0, True)
    >>> value_range(np.array([1.0, 2.0]), 100.0)
    (1.0, 2.0, False)
    """
    low, high = (float(end) for end in np.percentile(values, [TAIL, 100 - TAIL], method="nearest"))
    if low == high:
        pad = abs(low) / 2 or 0.5
        low, high = low - pad, high + pad
    if bound is None or low <= bound <= high:
        return low, high, bound is not None
    least, most = float(values.min()), float(values.max())
    if bound > high:
        wider = low, min(most, bound + (bound - low) / 4) if most > bound else bound
    else:
        wider = max(least, bound - (high - bound) / 4) if least < bound else bound, high
    if not least <= bound <= most and wider[1] - wider[0] > WIDEST * (high - low):
        return low, high, False
    return *wider, True


def ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers between two ends.

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.6g}") for number in range(first, last + 1)]


def short(value: float) -> str:
    """A number in few characters.

    >>> short(0.25), short(24_000_000.0)
    ('0.25', '24 M')
    """
    return f"{value / 1e6:.4g} M" if abs(value) >= 1e6 else f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


def _bars(counts: np.ndarray, axis: float, scale: float, kind: str) -> Markup:
    width = (RIGHT - LEFT) / len(counts)
    path = []
    for place in np.flatnonzero(counts):
        height = math.copysign(max(abs(scale) * int(counts[place]), 1.5), scale)  # one image among many is still seen
        path.append(f"M{LEFT + place * width:.1f} {axis:.1f}v{height:.1f}h{width - 0.6:.1f}v{-height:.1f}z")
    return Markup('<path class="{}" d="{}"/>').format(kind, "".join(path))


def _at(value: float, low: float, high: float) -> float:
    return LEFT + (RIGHT - LEFT) * (value - low) / (high - low)


def _tick(value: float, low: float, high: float) -> Markup:
    place = _at(value, low, high)
    return _text(place, BOTTOM + 11, _anchor(place), short(value), "")


def _bound(bound: float, low: float, high: float, inside: bool) -> Markup:
    if not inside:
        side, text = (LEFT, f"◂ bound {short(bound)}") if bound < low else (RIGHT, f"bound {short(bound)} ▸")
        return _text(side, TOP - 8, "start" if bound < low else "end", text, "note")
    place = _at(bound, low, high)
    line = Markup('<line class="bound" x1="{x:.1f}" x2="{x:.1f}" y1="{}" y2="{}"/>').format(TOP - 5, BOTTOM, x=place)
    return line + _text(place, TOP - 8, _anchor(place), f"bound {short(bound)}", "note")


def _anchor(place: float) -> str:
    return "start" if place < LEFT + 30 else "end" if place > RIGHT - 30 else "middle"


def _text(x: float, y: float, anchor: str, text: str, kind: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{}" text-anchor="{}" class="{}">{}</text>').format(x, y, anchor, kind, text)
