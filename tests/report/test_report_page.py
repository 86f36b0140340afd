"""The page holds the numbers of the runs, needs nothing else, and runs no text of theirs."""

import html.parser
import re

import numpy as np
import pytest

from jaxseg.report.__main__ import main
from jaxseg.report.confusion import largest_confusions
from jaxseg.report.markup import element, render
from support.small_runs import CLASSES, label_maps, write_images, write_lines, write_run

PUBLISHED = "upernet_internimage_t_512x1024_160k_cityscapes"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on the same images, and their scores."""
    root = tmp_path_factory.mktemp("runs")
    samples = write_images(root / "images")
    labels = label_maps(len(samples), len(CLASSES))
    first = write_run(root / "first", samples, labels, errors=0.6, lr=0.01)
    second = write_run(root / "second", samples, labels, errors=0.2, lr=0.02)
    return root, first, second


@pytest.fixture(scope="module")
def page(runs):
    root, *_ = runs
    out = root / "report.html"
    arguments = [str(root / "first"), str(root / "second"), "--out", str(out)]
    main([*arguments, "--published", PUBLISHED, "--pictures", "2"])
    return Page(out.read_text(encoding="utf-8"))


class Page(html.parser.HTMLParser):
    """The elements of a page, and its tables as rows of texts."""

    def __init__(self, text):
        super().__init__()
        self.source, self.tags, self.tables, self.stray = text, [], [], []
        self._open = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input"):
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        if self._open.pop() != tag:
            self.stray.append(tag)

    def handle_data(self, data):
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data

    def rows(self, heading):
        """The rows below the head of the first table with this heading."""
        head, *rows = next(table for table in self.tables if heading in table[0])
        return [dict(zip(head, row, strict=True)) for row in rows]


def percents(text):
    return [float(number.replace("−", "-")) for number in re.findall(r"[+−]?\d+\.\d+", text)]  # noqa: RUF001


def test_the_scores_are_those_of_the_evaluations(page, runs):
    _, *scores = runs
    rows = page.rows("run")
    for row, found in zip(rows, scores, strict=True):
        value, low, high = percents(row["mIoU"])
        assert value == pytest.approx(100 * found.miou, abs=0.005)
        assert low < value < high
        assert percents(row["aAcc"]) == [pytest.approx(100 * found.aacc, abs=0.005)]
        assert (row["step"], row["images"]) == ("20", "6")
    assert rows[0]["difference to first"] == "-"
    value, low, high = percents(rows[1]["difference to first"])
    assert value == pytest.approx(100 * (scores[1].miou - scores[0].miou), abs=0.005)
    assert 0 < low < value < high


def test_the_published_score_stands_beside_them(page, runs):
    _, first, _ = runs
    row = page.rows("run")[0]
    assert row["published ss / ms"] == "82.58 / 83.40"
    (difference,) = percents(row["difference to published ss"])
    assert difference == pytest.approx(100 * first.miou - 82.58, abs=0.005)
    assert "published, single scale 82.58" in page.source


def test_classes_have_scores_differences_and_intervals(page, runs):
    _, first, second = runs
    rows = page.rows("class")
    assert tuple(row["class"] for row in rows) == CLASSES
    for index, row in enumerate(rows):
        value, low, high = percents(row["IoU second"])
        assert value == pytest.approx(100 * second.iou[index], abs=0.005)
        assert low < value < high
        value, low, high = percents(row["difference of second"])
        assert value == pytest.approx(100 * (second.iou - first.iou)[index], abs=0.005)
        assert row["difference of second"].startswith("▲")


def test_text_of_the_runs_is_never_markup(page):
    assert not page.stray
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert scripts == [{}]  # our own
    assert "alert(1)" in page.source
    assert "<script>alert" not in page.source
    assert "<b>tiny" not in page.source


def test_the_page_needs_nothing_from_outside(page):
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object")
        for name in ("src", "href"):
            address = attributes.get(name) or "#"
            assert address.startswith(("#", "data:image/jpeg;base64,")), address[:80]
    assert not re.search(r"https?://|url\(|@import", page.source)


def test_pictures_are_behind_sliders(page):
    sliders = [attributes for tag, attributes in page.tags if attributes.get("type") == "range"]
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(sliders) == 2 * 4  # in each run, two worst and two best
    stops = [slider["data-stops"].split("|") for slider in sliders]
    assert all(names[:4] == ["image", "label", "prediction", "errors"] for names in stops)
    assert sum(map(len, stops)) == len(images)
    assert all(
        int(slider["max"]) == len(names) - 1 for slider, names in zip(sliders, stops, strict=True)
    )
    assert {(image["width"], image["height"]) for image in images} == {("512", "384")}


def test_settings_that_differ_are_listed(page):
    assert page.rows("setting")[0] == {"setting": "optim.lr", "first": "0.01", "second": "0.02"}
    assert len(page.rows("setting")) == 1


def test_versions_and_devices_are_listed(page):
    rows = {row[""]: row["second"] for row in page.rows("")}
    assert (rows["jax"], rows["devices"]) == ("0.10.2", "4 TPU v5e")


def test_fewer_pictures_may_be_asked_for(runs, tmp_path):
    root, *_ = runs
    main([str(root / "first"), "--out", str(tmp_path / "r.html"), "--pictures", "0"])
    assert "<img" not in (tmp_path / "r.html").read_text()


def test_a_run_of_mmsegmentation_stands_beside_ours(runs, tmp_path, capsys):
    root, first, _ = runs
    line = {"mode": "val", "iter": 500, "mIoU": 0.5, "mAcc": 0.6, "aAcc": 0.7}
    line |= {f"IoU.{name}": 0.5 for name in reversed(CLASSES)}
    write_lines(tmp_path / "x.log.json", {"mode": "train", "iter": 50, "loss": 1.0}, line)
    main([str(root / "first"), str(tmp_path / "x.log.json"), "--out", str(tmp_path / "r.html")])
    assert "x.log.json has no intervals and no pictures" in capsys.readouterr().out
    rows = Page((tmp_path / "r.html").read_text()).rows("class")
    for index, row in enumerate(rows):
        assert percents(row["IoU x.log.json"]) == [50]
        (difference,) = percents(row["difference of x.log.json"])
        assert difference == pytest.approx(50 - 100 * first.iou[index], abs=0.005)


def test_differences_of_other_classes_are_left_out(runs, tmp_path, capsys):
    root, *_ = runs
    samples = write_images(tmp_path / "images")
    labels = label_maps(len(samples), 3)
    write_run(tmp_path / "other", samples, labels, errors=0.3, classes=("road", "car", "sky"))
    main([str(root / "first"), str(tmp_path / "other"), "--out", str(tmp_path / "r.html")])
    note = "Differences of other to first are left out: their classes differ (only in first: tree"
    assert note in capsys.readouterr().out
    page = Page((tmp_path / "r.html").read_text())
    assert [row["class"] for row in page.rows("class")] == [*CLASSES, "sky"]
    assert "difference of other" not in page.rows("class")[0]


def test_differences_on_other_images_have_no_intervals(runs, tmp_path, capsys):
    root, *_ = runs
    samples = write_images(tmp_path / "images")
    labels = label_maps(len(samples), len(CLASSES), seed=9)
    write_run(tmp_path / "other", samples, labels, errors=0.3)
    main([str(root / "first"), str(tmp_path / "other"), "--out", str(tmp_path / "r.html")])
    assert "have no intervals: the two were not evaluated on" in capsys.readouterr().out
    row = Page((tmp_path / "r.html").read_text()).rows("class")[0]
    assert len(percents(row["difference of other"])) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "is no work directory"),
        (["first", "first"], "is given twice"),
        (["first", "--published", "upernet"], "no published weights 'upernet'; the nearest are"),
        (["first", "--out", "first/run.json/r.html"], "cannot write"),
        (["damaged"], r"01_\w+\.png is no panel of the image"),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(runs, tmp_path, monkeypatch, arguments, message):
    samples = write_images(tmp_path / "images")
    write_run(tmp_path / "first", samples, label_maps(len(samples), 3), errors=0.3, pictures=0)
    write_run(tmp_path / "damaged", samples, label_maps(len(samples), 3), errors=0.3, pictures=1)
    for file in (tmp_path / "damaged").rglob("01_*.png"):
        file.write_bytes(file.read_bytes()[:100])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        main(arguments)


def test_a_run_in_a_bucket_must_be_copied_first(capsys):
    with pytest.raises(SystemExit):
        main(["gs://bucket/run 1"])
    assert "gcloud storage cp --recursive 'gs://bucket/run 1' ." in capsys.readouterr().err


def test_the_largest_confusions_come_first():
    confusion = np.array([[9, 3, 0, 0], [5, 8, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    found = largest_confusions(confusion, ("a", "b", "c"), count=2)
    assert [(c.label, c.prediction, c.pixels) for c in found] == [("b", "a", 5), ("a", "b", 3)]
    assert found[0].share == 5 / 14
    (last,) = largest_confusions(confusion, ("a", "b", "c"), count=9)[2:]
    assert (last.label, last.prediction) == ("b", "no class")


def test_control_characters_and_halves_of_surrogate_pairs_can_be_written():
    text = render(element("p", "a\x00b\udc80", title='"<'))
    assert text == '<p title="&quot;<">a\N{REPLACEMENT CHARACTER}b?</p>'
    text.encode()
