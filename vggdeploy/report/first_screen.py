"""The first screen of the page: what to take and what it costs, the main picture, and a light for each variant."""

from __future__ import annotations

from html import escape
from typing import Any

from vggdeploy.report.answers import NOT_MEASURED, Answer, Fact, answers
from vggdeploy.report.documents import Results
from vggdeploy.report.findings import RULE
from vggdeploy.report.looks import mark_html
from vggdeploy.report.main_picture import main_figures
from vggdeploy.report.page import chart_html, light_html
from vggdeploy.report.parts import Figure
from vggdeploy.report.plots import vega_spec
from vggdeploy.report.subjects import Cast, Subject


class Pictures:
    """Collects the charts of a page; each gets its place in the document."""

    def __init__(self) -> None:
        self.specs: list[dict[str, Any]] = []

    def place(self, figure: Figure) -> str:
        spec = vega_spec(figure.draw())
        self.specs.append(spec)
        heading = f"<h3>{escape(figure.heading)}</h3>\n" if figure.heading else ""
        chart = chart_html(len(self.specs) - 1, spec, figure.text)
        return f"<figure>\n{heading}{chart}\n<figcaption>{escape(figure.text)}</figcaption>\n</figure>"


def first_screen(results: Results, cast: Cast, pictures: Pictures) -> str:
    """HTML; the parts that these results have."""
    rule = f'<p class="quiet rule">{escape(RULE)}</p>' if any(bench.rows for bench in results.bench) else ""
    takes = "\n".join(_take(answer) for answer in answers(results, cast))
    figures = main_figures(results, cast)
    picture = ""
    if figures:
        drawn = "\n".join(map(pictures.place, figures))
        picture = (
            f'<section class="card picture" aria-label="Main picture">\n<div class="pair">\n{drawn}\n</div>\n</section>'
        )
    lights = ""
    if cast.subjects:
        items = "\n".join(map(_light, cast.subjects))
        lights = (
            '<section class="card">\n<h2>Does each variant still compute what was trained?</h2>\n'
            f'<ul class="lights">\n{items}\n</ul>\n</section>'
        )
    return f'<div class="first">\n{takes}\n{picture}\n{lights}\n{rule}\n</div>'


def _take(answer: Answer) -> str:
    mark = mark_html(answer.backend) if answer.backend else ""
    facts = "".join(map(_fact, answer.facts))
    more = [
        f'<dl class="facts">{facts}</dl>' if facts else "",
        f"<p>{escape(answer.why[:1].upper() + answer.why[1:])}.</p>",
    ]
    for word, text in (("To settle it", answer.mend), ("Runner-up", answer.runner_up)):
        more += [f"<p><b>{word}:</b> {escape(text)}.</p>"] if text else []
    if answer.command:
        more.append(
            f'<pre tabindex="0" role="group" aria-label="The command that uses it"><code>{escape(answer.command)}</code></pre>'
        )
    body = "\n".join(part for part in more if part)
    return f"""<section class="card take{"" if answer.settled else " open"}">
<h2>{escape(answer.heading)}</h2>
<p class="name">{mark}{escape(answer.name)}</p>
{body}
</section>"""


def _fact(fact: Fact) -> str:
    value = escape(fact.value) if fact.value else f'<span class="quiet">{NOT_MEASURED}</span>'
    note = f' <span class="quiet">{escape(fact.note)}</span>' if fact.note else ""
    return f"<div><dt>{escape(fact.name)}</dt><dd>{value}{note}</dd></div>"


def _light(subject: Subject) -> str:
    verdict = str(subject.verdict)
    return f"""<li>{light_html(verdict)}
<div class="who"><b>{mark_html(subject.backend)}{escape(subject.label)}</b><span class="word {verdict}">{verdict}</span></div>
{f"<p>{escape(subject.apart)}</p>" if subject.apart else ""}<p>{escape(subject.why)}</p></li>"""
