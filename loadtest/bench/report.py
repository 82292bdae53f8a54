"""The figures of a run as a table, beside their budgets, and as a picture."""

from statistics import median

from measures import H2C, TCP, UNITS

# Design budgets: (measure, beside whom, most times as much). For `tcp`, at least the peer's figure divided by it.
BUDGETS = [
    ("http c16", "nginx", 1.1), ("http c16", "haproxy", 0.9), ("http c256", "nginx", 1.1), ("http c256", "haproxy", 0.9),
    (H2C, "haproxy", 1.4), ("added p50", "haproxy", 1.3), (TCP, "haproxy", 1.2),
]
HELD_BYTES = 16_384


class Figures:
    """All samples by proxy and measure; the figure is the median, with the least and the most beside it."""

    def __init__(self):
        self.samples = {}

    def add(self, proxy, figures):
        for name, value in figures.items():
            self.samples.setdefault(name, {}).setdefault(proxy, []).append(value)

    def of(self, name, proxy):
        samples = self.samples.get(name, {}).get(proxy)
        return median(samples) if samples else None

    def budgets(self):
        """Rows of (measure, beside, ratio, budget, met)."""
        rows = []
        for name, peer, most in BUDGETS:
            ours, theirs = self.of(name, "dormouse"), self.of(name, peer)
            # A latency below that of the direct way is a machine that is too busy to measure one.
            if ours and theirs and ours > 0 and theirs > 0:
                ratio = theirs / ours if name == TCP else ours / theirs
                rows.append((name, peer, ratio, most, ratio <= most))
        held = self.of("held", "dormouse")
        if held:
            rows.append(("held", "16 KiB", held / HELD_BYTES, 1.0, held <= HELD_BYTES))
        return rows

    def text(self, proxies, remarks):
        lines = [f"{'':<17}" + "".join(f"{proxy:>26}" for proxy in proxies)]
        for name, unit in UNITS.items():
            cells = []
            for proxy in proxies:
                samples = self.samples.get(name, {}).get(proxy)
                cells.append(f"{number(median(samples))} ({number(min(samples))}-{number(max(samples))})" if samples else "-")
            if any(cell != "-" for cell in cells):
                lines.append(f"{name:<17}" + "".join(f"{cell:>26}" for cell in cells) + f"  {unit}")
        lines += [f"  {remark}" for remark in remarks]
        if any((self.of(f"added {part}", proxy) or 0) < 0 for part in ("p50", "p99", "p99.9") for proxy in proxies):
            lines.append("  added latencies below zero: this machine was too busy to measure them")
        lines.append(f"\n{'dormouse beside':<28}{'ratio':>8}{'budget':>8}")
        for name, peer, ratio, most, met in self.budgets():
            lines.append(f"{name + ' / ' + peer:<28}{ratio:>8.2f}{most:>8.2f}  {'met' if met else 'MISSED'}")
        return "\n".join(lines)


def number(value):
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


COLOURS = {"nginx": "#4c956c", "haproxy": "#2c6e9b", "envoy": "#8f6bb3", "dormouse": "#d1495b"}


def picture(figures, proxies, title):
    """Bars of each measure, as a ratio to haproxy, which is the line at 1. SVG."""
    names = [name for name in UNITS if all((figures.of(name, proxy) or 0) > 0 for proxy in ("haproxy", "dormouse"))]
    row, bar, left, wide = 16 * len(proxies) + 14, 14, 150, 560
    height = 70 + row * len(names)

    def ratio(name, proxy):
        value, base = figures.of(name, proxy), figures.of(name, "haproxy")
        if value is None:
            return None
        return base / value if name == TCP else value / base

    most = max([1.5] + [ratio(name, proxy) or 0 for name in names for proxy in proxies])
    most = min(most, 4.0)
    scale = wide / most
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + wide + 170}" height="{height}" font-family="sans-serif" '
           f'font-size="12"><rect width="100%" height="100%" fill="#ffffff"/>',
           f'<text x="12" y="22" font-size="15">{title}</text>',
           '<text x="12" y="40" fill="#555">ratio to haproxy, less is better; the figures are in the units of the table</text>']
    for at, name in enumerate(names):
        top = 54 + at * row
        out.append(f'<text x="{left - 8}" y="{top + row / 2}" text-anchor="end">{name}</text>')
        for place, proxy in enumerate(proxies):
            value, y = ratio(name, proxy), top + place * 16
            if value is None or value < 0:
                out.append(f'<text x="{left + 4}" y="{y + 11}" fill="#888">{proxy}: none</text>')
                continue
            length = max(min(value, most), 0) * scale
            out.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar}" fill="{COLOURS.get(proxy, "#777")}"/>')
            label = f"{'» ' if value > most else ''}{proxy} {number(figures.of(name, proxy))} ({value:.2f})"
            out.append(f'<text x="{left + length + 5:.1f}" y="{y + 11}">{label}</text>')
        for limit_name, peer, limit in BUDGETS:
            base = figures.of(name, peer)
            if limit_name == name and base:
                at_ratio = limit if name == TCP else limit * base / figures.of(name, "haproxy")
                x, y = left + min(at_ratio, most) * scale, top + proxies.index("dormouse") * 16
                out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 3}" y2="{y + bar + 3}" stroke="#000" stroke-width="2">'
                           f"<title>budget: {limit} × {peer}</title></line>")
    x = left + scale
    out.append(f'<line x1="{x}" x2="{x}" y1="48" y2="{height - 18}" stroke="#999" stroke-dasharray="4 3"/>')
    out.append(f'<text x="12" y="{height - 6}" fill="#555">short black lines: budgets of dormouse</text></svg>')
    return "\n".join(out) + "\n"
