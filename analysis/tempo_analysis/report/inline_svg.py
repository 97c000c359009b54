"""SVG files as parts of a page: several beside one another without their ids meeting."""

import re
from xml.etree import ElementTree

from tempo.errors import InputError

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}"
_LOCAL = re.compile(r"url\((['\"]?)#([^)'\"]+)\1\)")
_RULE = re.compile(r"([^{}]+)\{")


def inline_svg(svg: str, *, label: str, prefix: str) -> str:
    """An SVG file as an element of an HTML page, read as one image with a name.

    Every id and whatever points to it begin with the prefix: a browser takes the first element of
    an id in the whole page, and figures of one library number their clip paths alike. Styles hold
    for this figure only. What is not drawn, such as metadata, is left out.

    Raises:
        InputError: The text is no SVG.
    """
    root = _parsed(svg)
    for parent in list(root.iter()):
        for child in [one for one in parent if not _is_svg(one)]:
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
        _rename(element, prefix)
    root.attrib |= {"xmlns": _SVG, "id": f"{prefix}svg", "role": "img", "aria-label": label}
    title = ElementTree.Element("title")
    title.text = label
    root.insert(0, title)
    return ElementTree.tostring(root, encoding="unicode")


def _parsed(svg: str) -> ElementTree.Element:
    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError as error:
        raise InputError(f"expected the text of an SVG file, got {svg[:40]!r} ({error})") from None
    if root.tag != f"{{{_SVG}}}svg" or "viewBox" not in root.attrib:
        raise InputError(
            f"expected an SVG file with a viewBox, got <{root.tag}>; save the figure as SVG"
        )
    return root


def _is_svg(element: ElementTree.Element) -> bool:
    """Whether it is drawn or says how; its own title gives way to the label of the figure."""
    tag = element.tag
    local = tag.removeprefix(f"{{{_SVG}}}")
    return tag != local and local not in ("metadata", "script", "title")


def _rename(element: ElementTree.Element, prefix: str) -> None:
    given = {key.replace(_XLINK, ""): value for key, value in element.attrib.items()}
    element.attrib.clear()
    for key, value in given.items():
        element.set(key, _renamed(key, value, prefix))
    if element.tag == "style":
        scoped = _RULE.sub(lambda found: _scoped(found[1], prefix), element.text or "")
        element.text = _LOCAL.sub(rf"url(#{prefix}\2)", scoped)


def _renamed(key: str, value: str, prefix: str) -> str:
    if key == "id":
        return f"{prefix}{value}"
    if key == "href" and value.startswith("#"):
        return f"#{prefix}{value[1:]}"
    return _LOCAL.sub(rf"url(#{prefix}\2)", value)


def _scoped(selectors: str, prefix: str) -> str:
    each = (f"#{prefix}svg {one.strip()}" for one in selectors.split(","))
    return f"{', '.join(each)} {{"
