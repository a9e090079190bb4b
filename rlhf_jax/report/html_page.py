"""A report as one HTML file that needs no other file: with its images, in light and dark, good to print.

A run can be somebody else's. Its texts are already escaped in the Markdown (see markdown.py). The page takes in the
figures that lie beside the report, and no other file to which a name or a link leads.
"""

import base64
import html
import pathlib
import re
import urllib.parse

from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import write_text

_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1a1a1a; --line: #ddd; --soft: #f5f5f5; --link: #0072b2 }
@media (prefers-color-scheme: dark) {
  :root { --back: #16181b; --text: #e4e4e4; --line: #3a3d42; --soft: #22252a; --link: #56b4e9 }
  img { background: #fff; padding: 4px; border-radius: 4px }
}
body { background: var(--back); color: var(--text); font: 16px/1.5 system-ui, sans-serif; max-width: 64rem;
  margin: 2rem auto; padding: 0 1rem }
h1, h2, h3 { line-height: 1.2; margin: 2rem 0 .7rem } a { color: var(--link) } img { max-width: 100% }
.wide { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top }
td[style*="right"] { white-space: nowrap } td:first-child { min-width: 9rem }
th { border-bottom: 2px solid var(--text); text-align: left; vertical-align: bottom }
code, pre { background: var(--soft); font-size: .85rem; border-radius: 3px }
pre { padding: .7rem; overflow-x: auto } code { padding: 0 .2rem }
@media print { body { max-width: none; margin: 0; font-size: 10pt; background: #fff; color: #000 }
  table, img, pre { break-inside: avoid } .wide { overflow: visible } td, th { white-space: normal } }
"""


def write(markdown) -> pathlib.Path:
    """Writes NAME.html beside NAME.md, and returns its path.

    Images become data: URIs, so that the file can be sent. Links to other files stay relative.

    Raises:
      InputError: the file or one of its images cannot be read, an image is no figure of this report, or the page cannot
        be written.
    """
    markdown = pathlib.Path(markdown)
    try:
        text = markdown.read_text(encoding="utf-8")
        page = render(text, markdown.parent)
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error
    target = markdown.with_suffix(".html")
    write_text(target, page)
    return target


def render(text: str, folder) -> str:
    """Returns Markdown as a whole HTML page, with images from `folder`."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    # Our Markdown escapes text with entities and uses <br> alone as a tag (see markdown.cell).
    body = parser.render(text).replace("&lt;br&gt;", "<br>")
    for name in set(re.findall(r'<img src="([^"]+)"', body)):  # a link to a figure must jump to it
        body = body.replace(f'<a href="{name}"', f'<a href="#{name}"')
        data = _inline(pathlib.Path(folder), urllib.parse.unquote(html.unescape(name)))
        body = body.replace(f'<img src="{name}"', f'<img id="{name}" src="{data}"')
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    title = re.search("<h1>(.*?)</h1>", body)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{re.sub('<[^>]*>', ' ', title[1]) if title else 'report'}</title>\n"
        f'<meta name="viewport" content="width=device-width">\n<style>{_STYLE}</style></head>\n'
        f"<body>\n{body}</body></html>\n"
    )


def _inline(folder: pathlib.Path, name: str) -> str:
    """Returns a figure of the report as a data: URI.

    It is a PNG file in the report's folder, or in the folder `figures` there or in the folder of a sweep there.

    Raises:
      InputError: the name is that of another file, or the file is no PNG image.
    """
    *folders, file = pathlib.PurePosixPath(name).parts or [""]
    path = folder.resolve() / name
    own = not folders or (folders[-1] == "figures" and len(folders) <= 2 and not {"/", ".."} & {*folders})
    if not (own and file.endswith(".png") and path.resolve() == path):
        raise InputError(
            f"{name} is no figure of this report: a page shows only PNG files in its own figures/, and follows no links"
        )
    data = path.read_bytes()
    if not data.startswith(b"\x89PNG"):
        raise InputError(f"{path} is no PNG image: write the report again")
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
