"""One self-contained HTML page about a training or evaluation run, filled into ``html_report.html``.

Result table, curves over steps, held-out pictures before and after, and the glossary of the curves. No script, no
external resource; it follows the reader's light or dark mode. Whatever comes from data or a model is made printable
and escaped by the template; a content policy in the page's head forbids scripts and the network besides.
"""

import base64
import functools
import io
import math
from pathlib import Path
from typing import Any, Mapping, Sequence

from PIL import Image

from activeo3 import outputs
from activeo3.charts import Row, charts, series, smoothed
from activeo3.drawing import FOUND, LACKING, REGION, SURPLUS, TRUE, save_jpeg
from activeo3.log import MISSING, figure, is_number
from activeo3.monitor import METRIC_GLOSSARY
from activeo3.samples import Sample
from activeo3.terminal import printable


def write_page(
    path: Path | str,
    title: str,
    summary_lines: Sequence[str],
    rows: Sequence[Row] = (),
    table: tuple[Sequence[Row], Sequence[str]] = ((), ()),
    pairs: Sequence[tuple[Sample, ...]] = (),
    curve: Image.Image | None = None,
) -> Path:
    """Write the page of one run to ``path``, replacing an older one only when it is complete.

    ``summary_lines`` say what was trained; in one like ``data: scenes`` the name stands out. ``rows`` are those of
    ``metrics.jsonl``, ``table`` the rows and columns of log.table, ``pairs`` the same held-out picture under
    two policies (or any number), side by side, ``curve`` what a budget of regions buys. Parts without content are
    left out. Returns the path.
    """
    samples = [sample for pair in pairs for sample in pair]
    parts = {
        "tiles": _tiles(rows),
        "results": _table(*table, "Results"),
        "curve": curve and _image(curve),
        "charts": charts(rows),
        "legend": _legend(samples),
        "pairs": [[_column(sample) for sample in pair] for pair in pairs],
        "glossary": METRIC_GLOSSARY.items(),
    }
    return _write(Path(path), title, summary_lines, parts)


def write_picture_page(
    path: Path | str,
    title: str,
    summary_lines: Sequence[str],
    images: Sequence[Image.Image],
    rows: Sequence[Row],
    columns: Sequence[str],
) -> Path:
    """Write a page about one picture to ``path``: a summary, ``images`` of it, and a table of words. Returns the
    path."""
    parts = {"images": [_image(image) for image in images], "results": _table(rows, columns, "Answers")}
    return _write(Path(path), title, summary_lines, parts)


def _write(path: Path, title: str, summary_lines: Sequence[str], parts: Mapping[str, Any]) -> Path:
    halves = [line.partition(": ") for line in summary_lines]
    summary = [(name if colon else "", rest if colon else name) for name, colon, rest in halves]
    page = _template().render(title=title, summary=summary, **parts)
    outputs.leave(path, page.encode("utf-8", "replace"))
    return path


@functools.cache
def _template() -> Any:
    """The page's template: text of any origin is shown, without a tag, a quote, or a mark that turns its direction."""
    import jinja2

    shown = lambda value: printable(value) if type(value) is str else value  # noqa: E731
    options = dict(autoescape=True, finalize=shown, undefined=jinja2.ChainableUndefined, keep_trailing_newline=True)
    text = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    return jinja2.Environment(**options).from_string(text)


def _tiles(rows: Sequence[Row]) -> list[tuple[str, str, str, str]]:
    """(name, first mean, last mean, unit) of what matters most, and the time it took."""
    tiles = []
    for name in ("reward", "reward/coverage", "reward/task"):
        values = smoothed(series(rows, name)[1])
        if len(values) > 1:
            tiles.append((name, f"{values[0]:.2f}", f"{values[-1]:.2f}", ""))
    seconds = series(rows, "time/step")[1]
    if len(seconds):
        name, total = f"{len(seconds)} steps, {seconds.mean():.1f} s each", seconds.sum()
        size, unit = next(
            (size, unit) for size, unit in ((3600, "h"), (60, "min"), (1, "s")) if total >= size or size == 1
        )
        tiles.append((name, "", f"{total / size:.{0 if total >= 10 * size else 1}f}", unit))
    return tiles


def _table(rows: Sequence[Row], columns: Sequence[str], title: str) -> dict[str, Any] | None:
    """log.table for a browser: same cells, intervals apart from their values, without the columns that have none."""
    columns = [name for name in columns if any(figure(row.get(name)) != MISSING for row in rows)]
    if not columns:
        return None
    right = {name: all(is_number(row.get(name)) for row in rows) for name in columns}

    def cell(value: Any, name: str) -> tuple[str, str, str]:
        words, _, interval = figure(value).partition(" [") if isinstance(value, tuple) else (figure(value), "", "")
        return words, f"[{interval}" if interval else "", "right" if right[name] else "words"

    lines = [[cell(row.get(name), name) for name in columns] for row in rows]
    return {"title": title, "head": list(right.items()), "rows": lines}


def _legend(samples: Sequence[Sample]) -> list[tuple[tuple[int, int, int], str]]:
    """The colours of the pictures, and what they mean."""
    if any(sample.outcome.mask is not None for sample in samples):
        return [(REGION, "regions the policy proposes"), (TRUE, "right"), (LACKING, "missing"), (SURPLUS, "too much")]
    if any(sample.regions is not None for sample in samples):
        return [(TRUE, "true boxes"), (REGION, "regions the policy proposes"), (FOUND, "found by the task model")]
    return [(TRUE, "true boxes"), (FOUND, "found")]


def _column(sample: Sample) -> dict[str, Any]:
    """One answer about a picture, under one policy."""
    terms = []
    for name, term in sample.score.terms.items():
        share = min(1.0, max(0.0, term)) if math.isfinite(term) else 0.0
        terms.append((name, f"{share:.0%}", figure(float(term))))
    crops = sample.crops()
    return {
        "query": sample.example.query,
        "id": sample.example.id,
        "title": sample.title,
        "reward": figure(float(sample.score.total)),
        "picture": _image(sample.picture()),
        "crops": crops and _image(crops),
        "terms": terms,
        "error": sample.error,
        "text": printable(sample.text.strip(), limit=4000) or MISSING,
    }


def _image(image: Image.Image) -> dict[str, Any]:
    """A picture inside the page itself, as JPEG."""
    stream = io.BytesIO()
    save_jpeg(image, stream, quality=85)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return {"width": image.width, "height": image.height, "data": data}
