"""Draw the picture of docs/landscape.md from its table: python docs/landscape.py"""

import re
from pathlib import Path

from ttm_lab.course import figures
from ttm_lab.files import atomic_write

PAGE = Path(__file__).with_suffix(".md")
EARLY, START = 2006, 2014  # nothing of the table lies between: 2006 is drawn at 2013


def methods(text: str) -> list[tuple[str, str, int]]:
    """Kind, method and year of each row of the page's table."""
    rows = re.findall(r"^\| (\w+) \| \[(.+?)\]\(.+?\) \| (\d{4}) \|", text, flags=re.MULTILINE)
    return [(kind, method, int(year)) for kind, method, year in rows]


def draw(rows: list[tuple[str, str, int]]):
    """A row of the picture for each kind, the years from left to right."""
    figure, ax = figures.plt.subplots(figsize=(7.6, 6.4))
    y, ticks = 0.0, {}
    for kind in dict.fromkeys(kind for kind, _, _ in rows):
        ends: list[float] = []  # where the labels of each line of this kind end
        top = y
        for _, method, year in sorted((row for row in rows if row[0] == kind), key=lambda r: r[2]):
            x = START - 1 if year == EARLY else year
            line = next((k for k, end in enumerate(ends) if end <= x), len(ends))
            ends[line : line + 1] = [x + 0.6 + 0.2 * len(method)]
            ours = method.startswith("TTM")
            color = figures.OKABE_ITO["red" if ours else "blue"]
            ax.plot(x, y - line, marker="D" if ours else "o", markersize=8, color=color)
            weight = "bold" if ours else "normal"
            ax.text(x + 0.25, y - line, method, va="center", color=color, fontweight=weight)
        y -= len(ends)
        ticks[kind] = (top + y + 1) / 2
        ax.axhline(y + 0.5, color="#cccccc", linewidth=1, linestyle="-")
    years = range(START, max(year for _, _, year in rows) + 1)
    ax.set_xticks([START - 1, *years], [f"{year % 100:02}" for year in (EARLY, *years)])
    ax.set_yticks(list(ticks.values()), ticks, fontweight="bold")
    ax.set(xlabel="year, 20..", xlim=(START - 1.3, years[-1] + 3.1), ylim=(y + 0.5, 0.6))
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False)
    return figure


def main() -> None:
    figures.use_style()
    target = PAGE.with_suffix(".png")
    atomic_write(target, figures.to_png(draw(methods(PAGE.read_text(encoding="utf-8"))), scale=1.6))
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
