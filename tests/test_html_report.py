"""The page of a run: self-contained, harmless, complete, and the same bytes for the same run."""

import base64
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripted import sample_of

from activeo3 import outputs
from activeo3.charts import charts, series, smoothed
from activeo3.html_report import Bar, Page, Table, write_page
from activeo3.monitor import METRIC_GLOSSARY
from activeo3.samples import Card
from activeo3.types import TaskResult


def row(step: int, **more: object) -> dict:
    return {
        "step": step,
        "reward": 1.0 + step,
        "reward/format": 0.5,
        "kl": 0.01,
        "time/rollout": 1.0,
        "time/update": 0.5,
        "time/step": 2.0,
        **more,
    }


def cards() -> list[Card]:
    """The same answer of two policies, drawn."""
    return [sample_of().card(), sample_of().card()]


class Tags(HTMLParser):
    """Every tag with its attributes, every declared picture, and all text between tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_is_self_contained_and_runs_nothing(tmp_path: Path) -> None:
    evil = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;"
    outcome = TaskResult(np.array([[30.0, 30, 70, 70]]), np.ones(1))
    pair = [sample.card(small=True) for sample in (sample_of(evil, title="<u>"), sample_of("fine", outcome=outcome))]
    rows = [row(step, **{"reward/<b>": 0.1}) for step in range(1, 40)]
    page = Page(
        evil, [f"data: {evil}", evil], evil, rows=rows, headline=[Bar(evil, evil, 0.5, 0.4, 0.6)], film=[(1, pair)],
        groups=[(1, pair, b"")], pairs=[pair], table=Table([{evil: evil}], [evil], {evil: evil}),
    )  # fmt: skip
    path = write_page(tmp_path / "new" / "report.html", page)
    page = path.read_text(encoding="utf-8")
    tags = Tags(page)
    names = {tag for tag, _ in tags.seen}
    assert not names & {"script", "link", "iframe", "object", "u"}
    assert "http://" not in page and "https://" not in page and "url(" not in page
    for tag, attributes in tags.seen:
        assert not [name for name in attributes if name.startswith("on") or name == "href"]
        assert tag != "img" or attributes["src"].startswith("data:image/jpeg;base64,")
    # Title, heading, status, two lines, a bar with its meaning, two answers; in the table a column, its cell, its meaning
    assert tags.text.count(evil) == 13
    assert (
        sum(tag == "img" for tag, _ in tags.seen) == 1 + 4 + 4
    )  # film (of one question), group with crops, pair with crops
    assert {entry.name for entry in path.parent.iterdir()} == {"report.html", outputs.LIST}


def test_page_shows_curves_gallery_and_glossary(tmp_path: Path) -> None:
    rows = [row(step, kl=None if step == 2 else 0.5) for step in range(1, 10)]
    page = write_page(tmp_path / "a.html", Page("t", rows=rows, pairs=[cards()]))
    page = page.read_text("utf-8")
    captions = re.findall(r"<figcaption><b>(.*?)</b>", page)
    assert captions == ["reward", "kl", "reward/format", "time"]
    dots = [figure.count("<use") for figure in page.split("<figure")[1:]]
    assert dots == [9, 8, 9, 0]
    assert "</i>rollout 1<" in page and "</i>update 0.5<" in page and "</i>other 0.5<" in page
    assert page == write_page(tmp_path / "b.html", Page("t", rows=rows, pairs=[cards()])).read_text("utf-8")
    explained = {name for name in METRIC_GLOSSARY if f"<code>{name}</code>" in page}
    assert explained == {"reward", "reward/format", "kl", "time/rollout", "time/update", "time/step"}  # what was logged
    assert "nan" not in page.split("</style>")[1].split("<article>")[0]


def test_page_pictures_open_again(tmp_path: Path) -> None:
    page = write_page(tmp_path / "a.html", Page("t", pairs=[cards()[:1]])).read_text("utf-8")
    data = re.findall(r'base64,([^"]+)"', page)
    sizes = [Image.open(io.BytesIO(base64.b64decode(picture))).size for picture in data]
    assert sizes == [(400, 358), (220, 220)]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"step": 1}],
        [row(1)],
        [row(1), row(2)],
        [row(1, reward=None, kl=math.nan)],
        [row(1), {"step": 2, "time/step": 1.0, "time/save": 0.5}],
        [row(1, **{"time/step": 0.0})],
        [row(step, reward=-3.0, kl=0.0) for step in range(3)],
    ],
)
def test_page_of_hardly_anything(rows: list[dict], tmp_path: Path) -> None:
    nobody = sample_of("", regions=()).card()
    page = write_page(tmp_path / "a.html", Page("t", rows=rows, pairs=[(nobody,)])).read_text("utf-8")
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert "nan" not in drawn and "inf" not in drawn
    assert page.endswith("</html>\n")


def test_smoothing_keeps_level_and_place() -> None:
    step = np.where(np.arange(300) < 150, 0.0, 1.0)
    mean = smoothed(step)
    assert len(mean) == 300 and mean[0] == 0 and mean[-1] == pytest.approx(1)
    assert abs(np.searchsorted(mean, 0.5) - 150) <= 1  # centred: the bend stays where it is
    assert np.array_equal(step, np.where(np.arange(300) < 150, 0.0, 1.0))
    rows = [{"step": 1, "a": 1.0}, {"step": 2, "a": None}, {"step": 3}, {"step": 4, "a": 3}]
    assert [part.tolist() for part in series(rows, "a")] == [[1, 4], [1, 3]]


def test_a_chart_has_its_points_where_the_values_are_and_the_colours_of_the_page() -> None:
    """Three values on a straight line: equal steps to the right, equal steps up, within the frame; no colour is
    fixed."""
    (chart,) = charts([{"step": step, "reward": value} for step, value in ((1, 0.0), (2, 2.0), (3, 4.0))])
    assert (chart["name"], chart["unit"], chart["main"]) == ("reward", "points", True)
    places = np.array(re.findall(r'<use xlink:href="#\w+" x="([\d.]+)" y="([\d.]+)"', chart["svg"]), dtype=float)
    assert np.diff(places, axis=0) == pytest.approx(np.diff(places, axis=0)[[0, 0]], abs=0.11)
    assert 42 <= places[0, 0] < places[2, 0] <= 360 - 60 and 10 <= places[2, 1] < places[0, 1] <= 190 - 26
    assert "var(--accent)" in chart["svg"] and not re.search(r"(fill|stroke): ?#", chart["svg"])
    assert re.findall(r">([\d.]+)</text>", chart["svg"])[-1] == "4"  # the last value, in words


def test_a_short_run_has_its_time_in_seconds(tmp_path: Path) -> None:
    for seconds, words in (
        (0.3, "0.9 s"),
        (9.0, "27 s"),
        (30.0, "1.5 min"),
        (12_000.0, "10 h"),
    ):
        rows = [{"step": step, "time/step": seconds} for step in (1, 2, 3)]
        assert f"<b>time</b> {words} (3 steps" in write_page(tmp_path / "a.html", Page("t", rows=rows)).read_text(
            "utf-8"
        )


def test_a_table_keeps_intervals_apart_and_leaves_out_columns_without_a_value(tmp_path: Path) -> None:
    table = [{"<i>": "a [b <u>", "AP": (0.4, 0.3, 0.5), "AR": None}, {"<i>": "c", "AP": 0.25}]
    page = write_page(tmp_path / "a.html", Page("t", table=Table(table, ["<i>", "AP", "AR"]))).read_text("utf-8")
    results = page.split("<h2>Results</h2>")[1].split("</table>")[0]
    assert re.findall(r"<th(?: [^>]*)?>(.*?)</th>", results) == ["&lt;i&gt;", "AP"]
    assert re.findall(r"<td[^>]*>(.*?)</td>", results) == [
        "a [b &lt;u&gt;",
        "0.40<small>[0.30, 0.50]</small>",
        "c",
        "0.25",
    ]
