"""An agent's answer as a report: Markdown with its charts beside it, and one HTML file with them inside.

The answer was written by a language model, perhaps under the influence of the data. So the HTML has no
markup of the answer's own, no scripts, and loads nothing: a picture from elsewhere would tell that place
what its address holds.
"""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from ringfence.agents.running import Chart

INSTRUCTIONS = (
    "Your last answer becomes a report. Write it in Markdown, with a heading, for a reader who has not "
    "seen your work: first the answer, then the findings with their numbers, then method and limits. "
    "Pictures that your code shows are named in the results of your calls; put one where it belongs with "
    "![what it shows](its name). Do not include other pictures. Your code is kept as a notebook beside the "
    "report, so do not repeat it."
)

_PICTURE = re.compile(r"!\[([^\]]*)\]\(\s*<?([^)\s>]*)>?[^)]*\)")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { font: 16px/1.6 system-ui, sans-serif; color: #222; }
body { max-width: 50rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.25; }
img { max-width: 100%; }
table { border-collapse: collapse; }
th, td { border: 1px solid #ccc; padding: .25rem .6rem; }
code, pre { font-family: ui-monospace, monospace; background: #f5f5f5; }
pre { padding: .8rem; overflow-x: auto; }
footer { margin-top: 3rem; color: #666; font-size: .9rem; }
"""


@dataclass(frozen=True)
class Report:
    """The files of a report."""

    markdown: Path
    html: Path
    charts: tuple[Path, ...]


def write_report(directory: Path, task: str, answer: str, charts: Sequence[Chart], footer: str) -> Report:
    """Write ``report.md``, ``report.html`` and the charts to `directory`, over those of an earlier run.

    answer: Markdown that refers to charts by their names; those it does not mention are added at its end.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for chart in charts:
        path = directory / chart.name
        path.write_bytes(chart.blob.data)
        paths.append(path)
    text = complete(answer, charts)
    markdown, page = directory / "report.md", directory / "report.html"
    markdown.write_text(f"{text}\n\n---\n\n{footer}\n", encoding="utf-8")
    page.write_text(as_html(task, text, charts, footer), encoding="utf-8")
    return Report(markdown, page, tuple(paths))


def complete(answer: str, charts: Sequence[Chart]) -> str:
    """The answer with all charts in it, and no pictures from elsewhere: those become links. Of a picture
    that there is not, it says so.
    """
    names = {chart.name for chart in charts}
    shown: set[str] = set()

    def keep(match: re.Match[str]) -> str:
        name = match[2].rpartition("/")[2]
        if name not in names:
            if re.match(r"(https?:)?//", match[2]):
                return match[0][1:]
            return f"{match[1]} (there is no picture `{name}`)"
        shown.add(name)
        return f"![{match[1]}]({name})"

    text = _PICTURE.sub(keep, answer.strip())
    rest = [f"![{chart.name}]({chart.name})" for chart in charts if chart.name not in shown]
    return "\n\n".join([text, "## Further charts", *rest] if rest else [text])


def as_html(title: str, text: str, charts: Sequence[Chart], footer: str) -> str:
    """A page that needs nothing beside it."""
    sources = {chart.name: _data_url(chart) for chart in charts}
    parser = MarkdownIt("js-default")
    tokens = parser.parse(text)
    for token in tokens:
        for child in token.children or ():
            if child.type == "image":
                _embed(child, sources)
    body = parser.renderer.render(tokens, parser.options, {})
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}"
        f"<footer>{parser.render(footer)}</footer>\n</body>\n</html>\n"
    )


def _embed(image: Token, sources: dict[str, str]) -> None:
    source = sources.get(str(image.attrs.get("src", "")))
    image.attrs["src"] = source or "data:,"


def _data_url(chart: Chart) -> str:
    return f"data:{chart.blob.mime_type};base64,{base64.b64encode(chart.blob.data).decode()}"
