"""The run report: what is drawn is what was measured, bounded, self-contained, escaped."""

import json
import re
import zipfile
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lmtraining_api import TimeAccounts
from lmtraining_api.history import Happening, Point, RunHistory
from lmtraining_cli import bundle
from lmtraining_cli.errors import CliError
from lmtraining_cli.report import Content, page
from lmtraining_cli.report.charts import COLUMNS_MAX, Scale, curve, pairs_of, thinned, ticks_of
from lmtraining_cli.report.content import placed
from lmtraining_cli.report.of_directory import content_of
from lmtraining_cli.report.of_job import content_of as content_of_job
from lmtraining_cli.report.style import ACCOUNT_COLOURS
from lmtraining_cli.snapshot import Snapshot

pytestmark = pytest.mark.unit

BEGAN = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
BYTES_MAX = 1_000_000


def points(count: int) -> list[Point]:
    return [
        Point(
            step=step, time=BEGAN + timedelta(seconds=step), loss=8.0 / step**0.2,
            loss_min=7.9 / step**0.2, loss_max=8.1 / step**0.2, learning_rate=6e-4,
            gradient_norm=0.5 + (step % 7) / 10, tokens_per_second=24_000.0 + step % 100,
            validation_loss=3.5 if step % 1000 == 0 else None,
        )
        for step in range(1, count + 1)
    ]  # fmt: skip


def content(count: int = 100, **changes: object) -> Content:
    values: dict[str, object] = {
        "name": "tiny", "state": "Completed", "made": BEGAN, "points": points(count),
        "accounts": {"productive": 90.0, "startup": 10.0}, "unigram_loss": 5.2,
        "checkpoints": [("100", "now", "4.5 MB", "intact", "ab" * 32)],
        "configuration": {"training": {"batchTokens": 4096}},
    }  # fmt: skip
    return Content(**(values | changes))  # type: ignore[arg-type]


class Tags(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def drawn(text: str, identity: str) -> list[tuple[float, float]]:
    """Steps and values, read back from the drawing."""
    svg = re.search(rf'<svg id="{identity}".*?</svg>', text)
    assert svg is not None
    numbers = {
        name: float(re.search(rf'data-{name}="([^"]+)"', svg[0])[1])  # type: ignore[index]
        for name in ("x-min", "x-max", "y-min", "y-max")
    }
    scale = Scale(**{name.replace("-", "_"): value for name, value in numbers.items()})
    origin, corner = scale.at((scale.x_min, scale.y_min)), scale.at((scale.x_max, scale.y_max))
    line = re.search(r'<polyline class="line-0"[^>]* points="([^"]+)"', svg[0])
    assert line is not None
    read = []
    for pair in line[1].split():
        x, y = map(float, pair.split(","))
        across = (x - origin[0]) / (corner[0] - origin[0])
        up = (y - origin[1]) / (corner[1] - origin[1])
        read.append(
            (
                scale.x_min + across * (scale.x_max - scale.x_min),
                scale.y_min + up * (scale.y_max - scale.y_min),
            )
        )
    return read


def test_what_is_drawn_is_what_was_measured() -> None:
    given = points(100)
    read = drawn(page(content(100)), "loss")
    assert len(read) == 100
    for (step, loss), point in zip(read, given, strict=True):
        assert step == pytest.approx(point.step, abs=0.02)
        assert loss == pytest.approx(point.loss, abs=0.001)


def test_a_long_run_makes_a_small_file_and_loses_no_spike() -> None:
    many = points(100_000)
    many[54_321] = many[54_321].model_copy(update={"gradient_norm": 77.0})
    text = page(content(0, points=many))
    assert len(text.encode()) < BYTES_MAX
    assert max(value for _, value in drawn(text, "norm")) == pytest.approx(77.0, abs=0.1)
    pairs = pairs_of(many, lambda point: point.loss)
    assert len(thinned(pairs)) <= 2 * COLUMNS_MAX + 1
    assert thinned(pairs)[-1] == pairs[-1]


def test_nothing_is_asked_of_anybody() -> None:
    """No script, no font, no picture, no link from elsewhere."""
    text = page(content())
    tags = Tags(text).found
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in tags}
    assert not [attributes for _, attributes in tags if {"src", "href"} & attributes.keys()]
    assert "url(" not in text
    assert "@import" not in text
    policies = [a["content"] for tag, a in tags if "http-equiv" in a]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_light_dark_phone_and_paper() -> None:
    text = page(content())
    for words in ("prefers-color-scheme:dark", "width=device-width", "@media print"):
        assert words in text


def test_every_text_is_escaped() -> None:
    evil = '<b onload="x">'
    text = page(
        content(
            name=evil, state=evil, summary=evil, missing=[evil], environment={evil: evil},
            configuration={evil: evil}, recoveries=[(evil, evil, evil)], stability={evil: evil},
            happenings=[Happening(step=3, time=BEGAN, kind='<b>"x', message=evil)],
        )
    )  # fmt: skip
    assert "<b" not in text.replace("<body", "")


def test_events_stand_at_their_step() -> None:
    late = Happening(step=0, time=BEGAN + timedelta(seconds=41.5), kind="Round", message="again")
    (found,) = placed([late], points(100))
    assert found.step == 41
    text = page(content(happenings=[found]))
    assert text.count("Round at step 41: again") == 4, "on each curve"


def test_what_is_missing_is_named_and_the_rest_shown() -> None:
    text = page(content(0, points=[], missing=["the curves: its pods are gone"]))
    assert "its pods are gone" in text
    assert "Goodput: 90.0% of 1m40s" in text
    assert "polyline" not in text.partition("</style>")[2]


def test_ticks_are_round_and_few() -> None:
    for low, high in ((0.0, 1.0), (3.2, 3.9), (1.0, 100_000.0), (5.0, 5.0)):
        assert 1 <= len(ticks_of(low, high or 1.0)) <= 8
    assert ticks_of(0.0, 100.0) == [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]


def test_one_point_is_a_dot_and_none_is_no_chart() -> None:
    assert "<circle" in curve("loss", {"training": [(1.0, 2.0)]}, unit="")
    assert curve("loss", {"training": []}, unit="") == ""


def test_every_account_has_a_colour() -> None:
    assert set(ACCOUNT_COLOURS) == set(TimeAccounts.model_fields)


def test_a_run_directory(tmp_path: Path) -> None:
    history = RunHistory(job_uid="u", job_name="tiny", points=points(30))
    (tmp_path / "history.json").write_text(history.model_dump_json(by_alias=True))
    (tmp_path / "run.json").write_text(json.dumps({"job_name": "tiny", "spec": {"seed": 7}}))
    checkpoint = tmp_path / "checkpoints" / "step-00000020"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text(json.dumps({"files": {"a": {"size": 1500}}}))
    (checkpoint / "intact.json").write_text("{}")
    found = content_of(tmp_path)
    assert (found.name, found.state, len(found.points)) == ("tiny", "Running", 30)
    assert found.configuration == {"seed": 7}
    ((step, _, size, marks, digest),) = found.checkpoints
    assert (step, size, marks, len(digest)) == ("20", "1.5 KB", "intact", 64)
    assert "seed" in page(found)


def test_a_directory_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="is no run directory"):
        content_of(tmp_path)


def test_a_uri_loses_its_query() -> None:
    """P11: a signed address is a secret."""
    uri = "https://store.example/text.txt?signature=secret"
    job = {
        "metadata": {"name": "tiny", "namespace": "team", "uid": "u"},
        "spec": {"data": {"train": [{"uri": uri}]}},
    }
    text = page(content_of_job(Snapshot(job=job, now=BEGAN), []))
    assert "secret" not in text
    assert "https://store.example/text.txt?…" in text


def test_a_bundle_holds_no_secret(tmp_path: Path) -> None:
    """P11."""
    pod = {
        "metadata": {
            "annotations": {"vault.example/token": "s3cret", "lmtraining.dev/intent": "{}"},
            "managedFields": [{"fieldsV1": {"f:s3cret": {}}}],
        },
        "spec": {"containers": [{"env": [{"name": "TOKEN", "value": "s3cret"}]}]},
    }
    job = {"spec": {"data": {"train": [{"uri": "https://x.example/a?key=s3cret"}]}}}
    path = tmp_path / "b.zip"
    bundle.write(path, objects={"pods.json": [pod], "job.json": job}, texts={"logs/a.log": "line"})
    with zipfile.ZipFile(path) as archive:
        found = {name: archive.read(name).decode() for name in archive.namelist()}
    assert set(found) == {"pods.json", "job.json", "logs/a.log"}
    assert "s3cret" not in "".join(found.values())
    assert "https://x.example/a?" in found["job.json"]
    assert "lmtraining.dev/intent" in found["pods.json"]
