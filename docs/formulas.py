"""Formulas as MathML: nothing to load and run in the browser, and screen readers read them out."""

from xml.etree import ElementTree

import latex2mathml.converter

MATHML = "http://www.w3.org/1998/Math/MathML"
ElementTree.register_namespace("", MATHML)


def mathml(latex: str, *, block: bool = False) -> str:
    """A formula as MathML, with the spaces that TeX sets and a browser would not.

    Those are the thin ones around a named function, and none about a slash or behind a sign.
    """
    display = "block" if block else "inline"
    formula = ElementTree.fromstring(latex2mathml.converter.convert(latex, display=display))
    for row in list(formula.iter(f"{{{MATHML}}}mrow")):
        spaced, before, before_named = [], None, False
        for part in row:
            named = (name := _innermost(part)).tag.endswith("}mi") and len(name.text or "") > 1
            if part.text == "/":
                part.attrib |= {"lspace": "0", "rspace": "0"}
            if before is not None:
                signed = part.text in ("−", "+") and before.tag.endswith("}mo")
                if signed and before.text not in (")", "]", "}", "|"):
                    part.set("form", "prefix")
                after_name = before_named and not part.tag.endswith("}mo")
                if after_name or (named and not before.tag.endswith("}mo")):
                    spaced.append(ElementTree.Element(f"{{{MATHML}}}mspace", width="0.167em"))
            spaced.append(part)
            before, before_named = part, named
        row[:] = spaced
    return ElementTree.tostring(formula, encoding="unicode")


def _innermost(part: ElementTree.Element) -> ElementTree.Element:
    """What a sub- or superscript stands at."""
    scripts = ("msub", "msup", "msubsup", "munder", "mover", "munderover")
    while part.tag.rpartition("}")[2] in scripts and len(part):
        part = part[0]
    return part
