"""A report as one HTML file: what to take and why on the first screen, then everything that was measured."""

from __future__ import annotations

from html import escape
from typing import Any

from vggdeploy.errors import one_line
from vggdeploy.records import SearchReport
from vggdeploy.report import findings
from vggdeploy.report.documents import Results
from vggdeploy.report.findings import RULE, Recommendation, recommend
from vggdeploy.report.page import chart_html, grid_html, light_html, whole_page
from vggdeploy.report.plots import library, vega_spec
from vggdeploy.report.sections import Figure, Section, pareto_figure, sections
from vggdeploy.report.subjects import Cast, Subject

_OPEN_NOTES = 6
_NO_BENCH = "nothing was measured: vggdeploy bench BUNDLE --json"
_NO_ACCURACY = "The picture of accuracy against latency needs a bench, and accuracies from verify or evaluate."


class _Pictures:
    """Collects the charts of a page; each gets its place in the document."""

    def __init__(self) -> None:
        self.specs: list[dict[str, Any]] = []

    def place(self, figure: Figure) -> str:
        spec = vega_spec(figure.draw())
        self.specs.append(spec)
        heading = f"<h3>{escape(figure.heading)}</h3>\n" if figure.heading else ""
        chart = chart_html(len(self.specs) - 1, spec, figure.text)
        return f"<figure>\n{heading}{chart}\n<figcaption>{escape(figure.text)}</figcaption>\n</figure>"


def report_page(results: Results, cast: Cast, *, title: str) -> str:
    """The whole document.

    Args:
        title: plain text.
    """
    pictures = _Pictures()
    first = _first_screen(results, cast, pictures)
    parts = sections(results, cast)
    links = "".join(f'<li><a href="#{part.anchor}">{escape(part.title)}</a></li>' for part in parts)
    body = f"""<a class="skip" href="#{parts[0].anchor}">Skip to the tables</a>
<header>
<h1>{escape(title)}</h1>
<p class="quiet">{escape(_about(results))}</p>
</header>
<main>
<div class="first">
{first}
</div>
<nav aria-label="Parts of this report"><ul>{links}</ul></nav>
{"".join(_section(part, pictures) for part in parts)}
</main>
"""
    return whole_page(body, pictures.specs, title=title, library=library())


def _about(results: Results) -> str:
    bundles = dict.fromkeys(
        getattr(d.result, "bundle", "") or getattr(d.result, "target", "") for d in results.documents
    )
    dates = sorted(d.result.created[:10] for d in results.documents)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    machines = dict.fromkeys(f"{b.machine.gpu or b.machine.cpu}, {b.threads} threads" for b in results.bench)
    return one_line(" · ".join([*bundles, *machines, when]))


def _first_screen(results: Results, cast: Cast, pictures: _Pictures) -> str:
    benches = sorted((b for b in results.bench if b.rows), key=lambda b: b.created, reverse=True)
    takes = "\n".join(_take(recommend(bench, cast), several=len(benches) > 1) for bench in benches)
    takes += "".join(map(_won, results.searches))
    if not takes:
        takes = f'<section class="card take none"><h2>Recommended</h2><p>None: {escape(_NO_BENCH)}.</p></section>'
    if not cast.subjects:
        return f'<div class="takes">\n{takes}\n</div>'
    figures = [figure for bench in benches if (figure := pareto_figure(bench, cast)) is not None][:1]
    picture = pictures.place(figures[0]) if figures else f"<p>{escape(_NO_ACCURACY)}</p>"
    lights = "\n".join(map(_light, cast.subjects))
    return f"""<div class="takes">
{takes}
</div>
<section class="card picture">
<h2>Accuracy against latency</h2>
<p class="quiet">Further left is faster, higher is better.</p>
{picture}
</section>
<section class="card">
<h2>Does each variant still compute what was trained?</h2>
<ul class="lights">
{lights}
</ul>
</section>"""


def _take(found: Recommendation, *, several: bool) -> str:
    where = f" on {found.bench.machine.gpu or found.bench.machine.cpu}" if several else ""
    kind = "card take" if found.row is not None else "card take none"
    name = found.label if found.row is not None else "None"
    return f"""<section class="{kind}">
<h2>Recommended{escape(one_line(where))}</h2>
<p class="name">{escape(name)}</p>
<p>{escape(one_line(found.reason[:1].upper() + found.reason[1:]))}.</p>
<p class="quiet">{escape(RULE)}</p>
</section>"""


def _won(report: SearchReport) -> str:
    name = f"{report.chosen}, trial {(report.winner or 0) + 1}" if report.chosen else "None"
    return f"""<section class="card take">
<h2>The search's winner</h2>
<p class="name">{escape(one_line(name))}</p>
<p>{escape(findings.search_words(report))}</p>
</section>"""


def _light(subject: Subject) -> str:
    verdict = str(subject.verdict)
    return f"""<li>{light_html(verdict)}
<div class="who"><b>{escape(subject.label)}</b><span class="word {verdict}">{verdict}</span></div>
<p>{escape(subject.why)}</p></li>"""


def _section(part: Section, pictures: _Pictures) -> str:
    lines = [f'<section aria-labelledby="{part.anchor}">', f'<h2 id="{part.anchor}">{escape(part.title)}</h2>']
    if part.text:
        lines.append(f"<p>{escape(part.text)}</p>")
    lines += [pictures.place(figure) for figure in part.figures]
    if part.missing:
        lines.append(f'<p class="quiet">{escape(part.missing)}</p>')
    if part.notes:
        items = "".join(f"<li>{escape(note)}</li>" for note in part.notes)
        notes = f'<ul class="notes">{items}</ul>'
        told = f"Why not everything counts: {len(part.notes)} reasons"
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
