"""Draw what race.py printed: `python bench/picture.py bench/results/race.txt > bench/results/race.svg`.

Bars of the medians of one run, longest first, with the ratio to the first contender. Plain SVG, readable on light and
dark pages, no library.
"""

import re
import sys
from pathlib import Path
from xml.sax.saxutils import escape

ROUND = re.compile(
    r"^median\s+(\S.*?)\s+([\d,.]+) msg/s\s+cpu\s+([\d.]+) us/msg\s+speed x([\d.]+)\s+cpu x([\d.]+)", re.M
)
WIDTH, ROW, LEFT, BAR = 760, 30, 130, 430


def rows_of(text: str) -> list[tuple[str, float, float, float, float]]:
    """Name, messages/s, CPU us a message, and both as ratios to the first contender."""
    found = [(name, *(float(number.replace(",", "")) for number in numbers)) for name, *numbers in ROUND.findall(text)]
    if not found:
        raise SystemExit("no line of medians: give it what race.py printed")
    return found  # type: ignore[return-value]


def picture(rows: list[tuple[str, float, float, float, float]]) -> str:
    """Give the SVG."""
    charts = (
        ("Messages per second into Redis (more is better)", 1, 3, "{:,.0f}", True),
        ("CPU microseconds per message (less is better)", 2, 4, "{:.1f}", False),
    )
    out, y = [], 0
    for title, value, ratio, form, most_first in charts:
        most = max(row[value] for row in rows)
        out.append(f'<text x="0" y="{y + 18}" class="title">{escape(title)}</text>')
        y += 30
        for row in sorted(rows, key=lambda row: -row[value] if most_first else row[value]):
            length = BAR * row[value] / most
            ours = ' class="ours"' if row[0].startswith("relay") else ""
            label = form.format(row[value]) + f"  (x{row[ratio]:.2f})"
            out.append(f'<text x="{LEFT - 8}" y="{y + 19}" text-anchor="end">{escape(row[0])}</text>')
            out.append(f'<rect x="{LEFT}" y="{y + 4}" width="{length:.1f}" height="{ROW - 10}" rx="3"{ours}/>')
            out.append(f'<text x="{LEFT + length + 8:.1f}" y="{y + 19}">{escape(label)}</text>')
            y += ROW
        y += 14
    style = (
        "text{font:14px system-ui,sans-serif;fill:#57606a}.title{font-weight:600}rect{fill:#8c959f}.ours{fill:#1f883d}"
        "@media(prefers-color-scheme:dark){text{fill:#c9d1d9}rect{fill:#6e7681}.ours{fill:#3fb950}}"
    )
    names = ", ".join(row[0] for row in rows)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" role="img" '
        f'aria-label="Speed and CPU of {escape(names)} in one run">\n<style>{style}</style>\n'
        + "\n".join(out)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    print(picture(rows_of(Path(sys.argv[1]).read_text())), end="")
