"""A report as one HTML file: what to take and why on the first screen, then everything that was measured."""

from __future__ import annotations

from html import escape

from vggdeploy.errors import counted, one_line
from vggdeploy.records.conclusions import ComparisonReport
from vggdeploy.report.documents import Result, Results
from vggdeploy.report.first_screen import Pictures, first_screen
from vggdeploy.report.page import grid_html, whole_page
from vggdeploy.report.parts import Section
from vggdeploy.report.plots import library
from vggdeploy.report.sections import sections
from vggdeploy.report.subjects import Cast

_OPEN_NOTES = 6


def report_page(results: Results, cast: Cast, *, title: str) -> str:
    """The whole document.

    Args:
        title: plain text.
    """
    pictures = Pictures()
    first = first_screen(results, cast, pictures)
    parts = sections(results, cast)
    links = "".join(f'<li><a href="#{part.anchor}">{escape(part.title)}</a></li>' for part in parts)
    body = f"""<a class="skip" href="#{parts[0].anchor}">Skip to the tables</a>
<header>
<h1>{escape(title)}</h1>
<p class="quiet">{escape(_about(results))}</p>
</header>
<main>
{first}
<nav aria-label="Parts of this report"><ul>{links}</ul></nav>
{"".join(_section(part, pictures) for part in parts)}
</main>
"""
    return whole_page(body, pictures.specs, title=title, library=library())


def _about(results: Results) -> str:
    names = dict.fromkeys(
        getattr(d.result, "bundle", "") or getattr(d.result, "target", "") or getattr(d.result, "gpu", "")
        for d in results.documents
    )
    dates = sorted(_created(d.result)[:10] for d in results.documents)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    machines = dict.fromkeys(f"{b.machine.gpu or b.machine.cpu}, {counted(b.threads, 'thread')}" for b in results.bench)
    return one_line(" · ".join(filter(None, [*names, *machines, when])))


def _created(result: Result) -> str:
    return result.new_created if isinstance(result, ComparisonReport) else result.created


def _section(part: Section, pictures: Pictures) -> str:
    lines = [f'<section aria-labelledby="{part.anchor}">', f'<h2 id="{part.anchor}">{escape(part.title)}</h2>']
    if part.text:
        lines.append(f"<p>{escape(part.text)}</p>")
    lines += [pictures.place(figure) for figure in part.figures]
    if part.missing:
        lines.append(f'<p class="quiet">{escape(part.missing)}</p>')
    if part.notes:
        items = "".join(f"<li>{escape(note)}</li>" for note in part.notes)
        notes = f'<ul class="notes">{items}</ul>'
        told = f"Why not everything counts: {counted(len(part.notes), 'reason')}"
        folded = f"<details>\n<summary>{told}</summary>\n{notes}\n</details>"
        lines.append(notes if len(part.notes) <= _OPEN_NOTES else folded)
    for grid in part.grids:
        if len(part.grids) > 1 or part.figures:
            lines.append(f"<h3>{escape(one_line(grid.caption))}</h3>")
        lines.append(grid_html(grid))
    if part.commands:
        text = escape("\n".join(part.commands))
        lines.append(f'<pre tabindex="0" aria-label="Commands"><code>{text}</code></pre>')
    lines.append("</section>\n")
    return "\n".join(lines)
