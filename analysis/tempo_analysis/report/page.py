"""One offline HTML page: a template, its styles and its scripts in one file.

The page asks the network for nothing, and its Content-Security-Policy allows one script only, by
its hash. Templates and scripts of one page are in the package of that page; those
that several pages share are in this one.
"""

import json
from base64 import b64encode
from collections.abc import Callable, Collection, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tempo.trace.store import disk_errors
from tempo_analysis.report.document import write_atomic

PAGE_FILE = "report.html"
HERE = Path(__file__).parent


def page_text(
    template: Path,
    *,
    scripts: Sequence[Path],
    styles: Sequence[Path],
    filters: Mapping[str, Callable[..., str]] | None = None,
    opened: Collection[str] = (),
    most_rows: int | None = None,
    **parts: Any,
) -> str:
    """The page as text.

    Args:
        template: A Jinja template that extends `base.html.j2`, the skeleton of every page; what it
            shows is escaped unless it is `Markup`.
        scripts: JavaScript files, in the order in which they run.
        styles: CSS files, in the order in which they apply.
        filters: Further filters of the template.
        opened: Names of the tables that lie open.
        most_rows: A table shows at most this many rows; its file has all.
        parts: What the template shows, at least `title`, `tables` and `facts`.
    """
    # Prompts and tokens are arbitrary text; a name that the template misspells must fail.
    environment = Environment(
        loader=FileSystemLoader([template.parent, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    for name, shown in (filters or {}).items():
        environment.filters[name] = shown
    script = "\n".join(file.read_text(encoding="utf-8") for file in scripts)
    style = "".join(file.read_text(encoding="utf-8") for file in styles)
    return environment.get_template(template.name).render(
        script=Markup(script),
        # Of the bytes exactly as they stand in the page: one space more and a browser refuses them.
        script_hash=b64encode(sha256(script.encode()).digest()).decode(),
        style=Markup(style),
        opened=opened,
        most_rows=most_rows,
        **parts,
    )


def save_page(text: str, folder: Path) -> Path:
    """Write `report.html` into a folder, whole or not at all; gives its path.

    Raises:
        OutputError: The disk refused.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / PAGE_FILE, text)
    return folder / PAGE_FILE


def json_inside(value: Any) -> Markup:
    """JSON that is also safe inside a script element: `<`, `>` and `&` are escaped."""
    # NaN is no JSON; Python would write it and the page's parser fail.
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    # `</script>` or `<!--` in a token would end the element; inside JSON strings \u003c is the same
    # character.
    safe = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Markup(safe)
