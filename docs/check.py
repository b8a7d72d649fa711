"""Checks of a built site, from its files alone: links, text alternatives, formulas, no network.

``check_site`` runs them all. Also a command: ``python docs/check.py runs/site``.
"""

import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup

MIN_ALT = 20
# Attributes by which an element loads something at once; an <a> only leads there.
LOADING = {
    "script": ("src",),
    "link": ("href",),
    "img": ("src", "srcset"),
    "source": ("src", "srcset"),
    "iframe": ("src",),
    "object": ("data",),
    "embed": ("src",),
    "video": ("src", "poster"),
    "audio": ("src",),
    "image": ("href", "xlink:href"),
    "use": ("href", "xlink:href"),
}
# <link> elements that name a page instead of loading it.
NAMING = {"next", "prev", "index", "search", "canonical", "alternate", "author", "genindex"}


def check_site(root: Path) -> tuple[list[str], list[str]]:
    """Faults as lines of text, and the outside addresses that links lead to."""
    pages = {
        path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        for path in sorted(root.rglob("*.html"))
    }
    faults, outside = [], set()
    if not pages:
        faults.append(f"{root} holds no page")
    for path, page in pages.items():
        found = [*links(path, page, pages), *alternatives(page), *formulas(page)]
        found += loaded_from_outside(page)
        faults += [f"{path.relative_to(root)}: {fault}" for fault in found]
        outside |= {a["href"] for a in page.find_all("a", href=True) if _is_outside(a["href"])}
    for path in sorted(root.rglob("*.css")):
        for fault in styles_from_outside(path.read_text(encoding="utf-8")):
            faults.append(f"{path.relative_to(root)}: {fault}")
    faults += [f"malformed address {a}" for a in sorted(outside) if not _well_formed(a)]
    return faults, sorted(outside)


def links(path: Path, page: BeautifulSoup, pages: dict[Path, BeautifulSoup]) -> list[str]:
    """Links inside the site that lead nowhere: no such file, or no such place on the page."""
    faults = []
    for element in page.find_all(["a", "link", "img", "script", "source", "iframe"]):
        for name in ("href", "src"):
            address = element.get(name)
            if address is None or _is_outside(address) or address.startswith("data:"):
                continue
            parts = urlsplit(address)
            target = path
            if parts.path:
                target = (path.parent / unquote(parts.path)).resolve()
                target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                faults.append(f"broken link {address}")
            elif parts.fragment and target in pages:
                place = unquote(parts.fragment)
                if not pages[target].find(attrs={"id": place}):
                    faults.append(f"broken link {address}: no such place on that page")
    return faults


def alternatives(page: BeautifulSoup) -> list[str]:
    """Pictures without words. Pictures hidden from screen readers only decorate."""
    return [
        f"picture {str(image.get('src'))[:60]} has the alt text {image.get('alt')!r}"
        for image in page.find_all("img")
        if image.get("aria-hidden") != "true" and len((image.get("alt") or "").strip()) < MIN_ALT
    ]


def formulas(page: BeautifulSoup) -> list[str]:
    """Formulas left as LaTeX, as a whole or in a command that was not understood."""
    faults = [f"formula error {error}" for error in page.find_all("merror")]
    for formula in page.find_all("math"):
        if not formula.get_text(strip=True):
            faults.append("empty formula")
        if command := re.search(r"\\[A-Za-z]+", formula.get_text()):
            faults.append(f"LaTeX command {command[0]} in a formula")
    skipped = {"script", "style", "pre", "code", "annotation", "title"}
    # Two prices are no formula: the second sign follows a space.
    for text in page.find_all(string=re.compile(r"\$\S(?:[^$\n]*\S)?\$|\\\(|\\\[|\\[a-z]+\{")):
        if not skipped & {parent.name for parent in text.parents}:
            faults.append(f"formula not rendered: {text.strip()[:60]!r}")
    return faults


def loaded_from_outside(page: BeautifulSoup) -> list[str]:
    """What a browser would fetch from another host as it opens the page."""
    faults = []
    for name, attributes in LOADING.items():
        for element in page.find_all(name):
            if name == "link" and NAMING & set(element.get("rel", [])):
                continue
            for attribute in attributes:
                for address in re.split(r",?\s+", element.get(attribute) or ""):
                    if _is_outside(address):
                        faults.append(f"<{name}> loads {address}")
    for element in page.find_all(style=True):
        faults += styles_from_outside(element["style"])
    for element in page.find_all("style"):
        faults += styles_from_outside(element.get_text())
    return faults


def styles_from_outside(css: str) -> list[str]:
    """Style sheets, fonts and pictures that CSS fetches from another host."""
    found = re.findall(r"""(?:url\(\s*|@import\s+(?!url))["']?([^"')\s;]+)""", css)
    return [f"style loads {address}" for address in found if _is_outside(address)]


def _is_outside(address: str) -> bool:
    return bool(re.match(r"(?:[a-z][a-z0-9+.-]*:)?//|mailto:", address.strip(), re.IGNORECASE))


def _well_formed(address: str) -> bool:
    if address.startswith("mailto:"):
        return re.fullmatch(r"mailto:\S+@\S+\.\S+", address) is not None
    parts = urlsplit(address)
    named = re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.hostname or "") is not None
    return parts.scheme in ("http", "https") and named and not re.search(r"\s", address)


if __name__ == "__main__":
    found, _ = check_site(Path(sys.argv[1]).resolve())
    print("\n".join(found) or "No fault found.")
    sys.exit(1 if found else 0)
