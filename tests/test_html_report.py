"""The page of a run: self-contained, harmless, complete, and the same bytes for the same run."""

import base64
import html
import io
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripted import sample_of

from activeo3 import html_report, outputs
from activeo3.charts import charts, series, smoothed
from activeo3.cli import ConfigError
from activeo3.html_report import Bar, Page, Table, leave_facts, write_page, write_run_page
from activeo3.monitor import METRIC_GLOSSARY
from activeo3.samples import Card, save_samples
from activeo3.types import Reward, TaskResult


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


# ---------------------------------------------------------------------- the page of a run, from its folder


def folder_of_a_run(folder: Path, steps: int = 4, text: str = "[]") -> Path:
    """What a run of 8 steps has left after some of them."""
    folder.mkdir(exist_ok=True)
    rows = [row(step, lr=1e-4 * step) for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    leave_facts(folder, title="activeo3: sense", steps=8, summary=["seed: 0"], ceilings={"reward": 12.0})
    for step in (0, 2, 4):
        held_out = [sample_of(f"{text} {step}").card(small=True)]
        group = [replace(sample_of(text), score=Reward({"task": 2.0}, total, total - 1.5)) for total in (1.0, 2.0)]
        save_samples(folder, step, group if step else [], held_out, Image.new("RGB", (48, 32)))
    return folder


def test_a_page_reads_itself_again_only_while_its_run_lives(tmp_path: Path) -> None:
    folder = folder_of_a_run(tmp_path / "run")
    live = write_run_page(folder, live=True).read_text()
    assert 'http-equiv="refresh"' in live and "step 4 of 8, ETA 00:08; written 20" in live
    over = write_run_page(folder, ended="Ctrl-C").read_text()
    assert 'http-equiv="refresh"' not in over and "stopped by Ctrl-C at step 4 of 8" in over
    leave_facts(
        folder, table=Table([{"method": "active", "AP": (0.5, 0.4, 0.6)}], ["method", "AP"]), counts={"fixed": 3}
    )
    done = write_run_page(folder).read_text()
    assert "finished: 4 steps" in done and "0.50<small>[0.40, 0.60]</small>" in done and "3 of 3 questions" in done


def test_the_parts_of_a_run_stand_in_order(tmp_path: Path) -> None:
    page = write_run_page(folder_of_a_run(tmp_path / "run"), live=True).read_text()
    steps = re.search(r"<th>step(.*?)</tr>", page)[1]
    assert re.findall(r"<th>(\d+)", steps) == ["0", "2", "4"]
    groups = re.findall(r'<details class="group"( open)?><summary>step (\d)', page)
    assert groups == [(" open", "4"), ("", "2")]  # the newest first, and open
    assert re.findall(r"<b>reward ([\d.]+)</b>", page) == ["2.00", "1.00"] * 2 and page.count("+0.50") == 2
    heads = re.findall(r"<h2>(.*?)</h2>", page)
    assert heads == [
        "The same questions over the steps", "One group: what the policy learns from", "Training",
        "What the numbers mean",
    ]  # fmt: skip
    assert "dashed: 12 is the most there can be" in page and page.count("<figure") == 5


def test_a_page_is_written_anew_by_a_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = folder_of_a_run(tmp_path / "run")
    html_report.main([str(folder)])
    assert capsys.readouterr().out.strip() == str(folder / "report.html") and (folder / "report.html").is_file()
    (folder / "samples" / "step-000002" / "samples-00-small.jpg").write_text("no picture")
    (folder / "report.json").unlink()
    html_report.main([str(folder)])  # what is missing or broken is left out
    for wrong, words in (([], "name the folder"), ([str(tmp_path)], "has no metrics.jsonl")):
        with pytest.raises(ConfigError, match=words):
            html_report.main(wrong)
    (folder / "report.json").write_text("[")
    with pytest.raises(ConfigError, match="report.json is damaged"):
        html_report.main([str(folder)])


def test_right_and_wrong_before_and_after_are_four_kinds() -> None:
    kinds = [html_report.kind_of(right) for right in ([False, True], [True, False], [False, False], [True, True])]
    assert tuple(kinds) == html_report.KINDS and html_report.kind_of([True]) == html_report.kind_of([None, True]) == ""


def test_the_learning_rate_is_not_smoothed() -> None:
    rows = [{"step": step, "lr": float(step > 30), "kl": float(step > 30)} for step in range(1, 61)]
    known = {chart["name"]: chart["svg"] for chart in charts(rows)}
    heights = {}
    for name, svg in known.items():
        line = max(re.findall(r'<path d="([^"]*)"', svg), key=len)  # the curve has more corners than anything else
        heights[name] = len(set(re.findall(r"L [\d.]+ ([\d.]+)", line)))
    assert heights["lr"] == 2 < heights["kl"]  # two levels, and a ramp between them


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FRAME = """<body><iframe id="page" src="{page}" style="width:{width}px;height:800px;border:0"></iframe><script>
page.onload = () => {{
  const inside = page.contentDocument.documentElement;
  const asked = page.contentWindow.performance.getEntriesByType("resource").map(one => one.name);
  document.title = JSON.stringify({{
    wide: inside.scrollWidth, asked: asked.filter(name => !name.startsWith("data:")),
    broken: [...page.contentDocument.images].filter(one => one.complete && !one.naturalWidth).length,
    dark: getComputedStyle(page.contentDocument.body).backgroundColor}});
}}</script></body>"""


@pytest.mark.skipif(not BROWSER, reason="needs chromium or google-chrome")
@pytest.mark.parametrize("width, dark", [(1280, False), (390, True)])
def test_a_page_fits_its_window_asks_for_nothing_and_has_no_error_in_a_real_browser(
    width: int, dark: bool, tmp_path: Path
) -> None:
    folder = folder_of_a_run(tmp_path / "run", text="<script>x</script>" + "long" * 90)
    columns = [f"column_with_a_long_name_{k}" for k in range(9)]
    table = Table([dict.fromkeys(columns, (0.123, 0.1, 0.2))], columns, {columns[0]: "word" * 60})
    leave_facts(folder, table=table, headline=[("trained", "words " * 20, 0.5, 0.4, 0.6)], measure="AP" * 50)
    save_samples(folder, "held-out", [], [sample_of("y" * 500, title="z" * 60).card()] * 2)
    page = write_run_page(folder)
    page.write_text(page.read_text().replace("<details", "<details open"))
    (tmp_path / "frame.html").write_text(FRAME.format(page=page.as_uri(), width=width))
    scheme = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
    ran = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-web-security", "--allow-file-access-from-files",
         "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'browser'}", "--window-size=1400,900", *scheme,
         "--dump-dom", (tmp_path / "frame.html").as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    seen = json.loads(html.unescape(re.search("<title>(.*?)</title>", ran.stdout)[1]))
    assert seen["wide"] <= width and seen["asked"] == [] and seen["broken"] == 0
    assert seen["dark"] == ("rgb(20, 22, 26)" if dark else "rgb(247, 247, 244)")
    assert "CONSOLE" not in ran.stderr, ran.stderr
