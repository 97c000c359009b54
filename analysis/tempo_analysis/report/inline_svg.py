"""SVG files as elements of one HTML page, with ids that are unique on the page."""

import re
from xml.etree import ElementTree

from tempo.errors import InputError

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}"
# A reference inside the file, as in clip-path="url(#p1)", with or without quotes.
_LOCAL = re.compile(r"url\((['\"]?)#([^)'\"]+)\1\)")
_RULE = re.compile(r"([^{}]+)\{")


def inline_svg(svg: str, *, label: str, prefix: str) -> str:
    """An SVG file as an element of an HTML page, read as one image with a name.

    Every id and every reference to it get the prefix: a browser uses the first element with an id
    in the page, and figures of one library use the same ids for their clip paths. Styles apply to
    this figure only. What is not drawn, such as metadata, is left out.

    Raises:
        InputError: The text is no SVG.
    """
    root = _parsed(svg)
    # A list, because children are removed while the tree is walked.
    for parent in list(root.iter()):
        for child in [one for one in parent if not _is_svg(one)]:
            parent.remove(child)
    for element in root.iter():
        # HTML knows SVG elements without a prefix; ElementTree would write `ns0:` before each.
        element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
        _rename(element, prefix)
    # xmlns keeps the element valid when it is saved from the page as a file of its own.
    root.attrib |= {"xmlns": _SVG, "id": f"{prefix}svg", "role": "img", "aria-label": label}
    title = ElementTree.Element("title")
    title.text = label
    # A title must be the first child to be read out as the name.
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
    """Whether an element is kept: not metadata, scripts or the title, which the label replaces."""
    tag = element.tag
    local = tag.removeprefix(f"{{{_SVG}}}")
    # Elements without the SVG namespace (RDF metadata) are not drawn; scripts do not belong in a
    # page whose policy allows one script only.
    return tag != local and local not in ("metadata", "script", "title")


def _rename(element: ElementTree.Element, prefix: str) -> None:
    # `href` without a namespace, which SVG 2 and HTML read; a prefix would need its declaration.
    given = {key.replace(_XLINK, ""): value for key, value in element.attrib.items()}
    element.attrib.clear()
    for key, value in given.items():
        element.set(key, _renamed(key, value, prefix))
    if element.tag == "style":
        # A style element inside a page applies to the whole page: every selector is put under the
        # id of this figure.
        scoped = _RULE.sub(lambda found: _scoped(found[1], prefix), element.text or "")
        element.text = _LOCAL.sub(rf"url(#{prefix}\2)", scoped)


def _renamed(key: str, value: str, prefix: str) -> str:
    if key == "id":
        return f"{prefix}{value}"
    # Only references inside the file; an address or embedded data stays as it is.
    if key == "href" and value.startswith("#"):
        return f"#{prefix}{value[1:]}"
    return _LOCAL.sub(rf"url(#{prefix}\2)", value)


def _scoped(selectors: str, prefix: str) -> str:
    each = (f"#{prefix}svg {one.strip()}" for one in selectors.split(","))
    return f"{', '.join(each)} {{"
