"""The report: one page from the files of a run, and what it says."""

import base64
import html.parser
import io
import json
import os
import re

import pytest
from PIL import Image

from dinov2_jax.viz import report

HOSTILE = "</script><img src=http://evil.test/x onerror=alert(1)>&\"'"


def line(step, **rest):
    """A line of a history with a loss below ln K."""
    values = {
        "loss/dino_local": 4.0,
        "loss/dino_global": 1.25,
        "loss/total": 9.0,
        "health/log_prototypes_dino": 6.24,
        "time/images_per_s": 100.0 + step,
        "health/rejected": 0.0,
        "data/skipped": 1,
    }
    return {"step": step} | values | rest


@pytest.fixture
def workdir(tmp_path):
    """Writes a run's folder and returns its path."""

    def make(name="run", lines=None, config=None, info=None):
        folder = tmp_path / name
        (folder / "pictures").mkdir(parents=True)
        if lines is None:
            lines = [
                {"step": 0, "knn/top1": 0.439, "knn/raw_pixels_top1": 0.516},
                line(1),
                line(2, **{"knn/top1": 0.571, "health/rejected": 1.0}),
                line(3, **{"knn/top1": 0.562}),
            ]
        text = "".join(json.dumps(entry) + "\n" for entry in lines)
        (folder / "metrics.jsonl").write_text(text)
        config = config or {"model": {"variant": "Ti/8"}, "seed": 0}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "run.json").write_text(json.dumps(info or {"command": "train me"}))
        Image.new("RGB", (30, 20), "teal").save(folder / "pictures" / "crops.png")
        return folder

    return make


class Elements(html.parser.HTMLParser):
    """Start tags with their attributes, and the text of table rows and tiles."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def words(page: str) -> str:
    """Text of the body with single spaces."""
    text = " ".join(Elements(page.split("<body>")[1]).text)
    return re.sub(r"\s+", " ", text)


def test_the_page_needs_nothing_but_itself(workdir):
    page = report.write([workdir()]).read_text()
    elements = Elements(page)
    for tag, attrs in elements.tags:
        assert tag not in ("link", "iframe", "object", "base", "form")
        assert not any(name.startswith("on") for name in attrs)
        assert "href" not in attrs
        assert attrs.get("src", "data:").startswith("data:")
        assert "src" not in attrs or tag == "img"
    assert "url(" not in page and "@import" not in page and "http" not in words(page)
    policy = [a["content"] for t, a in elements.tags if t == "meta" and "content" in a]
    assert policy[0].startswith("default-src 'none'")


def test_the_headline_tells_the_numbers_of_the_metrics(workdir):
    config = {"train": {"steps": 3}}
    page = report.write([workdir(config=config)]).read_text()
    said = words(page)
    assert "Did it learn? Yes" in said
    assert "now, step 3 56.2 %" in said
    assert "best, step 2 57.1 %" in said
    assert "untrained 43.9 %" in said and "raw pixels 51.6 %" in said
    assert "colour histogram \N{EN DASH}" in said
    assert "DINO loss 5.25 ln K is 6.24" in said
    assert "Images/s 102" in said
    assert "Skipped images / steps 3 / 1" in said
    assert "State finished" in said and "Step 3 of 3" in said


def test_curves_lie_in_the_folder_and_equal_those_of_the_page(workdir):
    folder = workdir()
    page = report.write([folder]).read_text()
    sources = [a["src"] for t, a in Elements(page).tags if t == "img"]
    files = sorted(path.name for path in (folder / "pictures").iterdir())
    groups = ("data", "health", "knn", "loss", "time")
    assert files == ["crops.png", *(f"curve_{group}.png" for group in groups)]
    shown = {base64.b64decode(src.split(",")[1]) for src in sources}
    assert shown == {(folder / "pictures" / name).read_bytes() for name in files}
    for png in shown:
        Image.open(io.BytesIO(png)).load()
    # Written again, the page does not take its own curves for pictures.
    again = report.write([folder]).read_text()
    assert again.count("<figure") == page.count("<figure") == len(files)


def test_hostile_text_stays_text(workdir):
    bad = {HOSTILE: {"key" + HOSTILE: HOSTILE}, "plain": HOSTILE, "list": [HOSTILE]}
    lines = [line(1, **{f"{HOSTILE}/x": 1.0})]
    folder = workdir("a", lines, bad, {"command": HOSTILE, "devices": HOSTILE})
    other = workdir("b<i>", lines, {"plain": "x"}, {HOSTILE: HOSTILE})
    for page in (report.write([folder]), report.write([folder, other])):
        text = page.read_text()
        assert HOSTILE in words(text)
        tags = Elements(text).tags
        assert all(tag != "i" or "style" in attrs for tag, attrs in tags)
        assert all("onerror" not in attrs for _, attrs in tags)
        assert [tag for tag, _ in tags].count("script") == 1
        assert all(a["src"].startswith("data:") for t, a in tags if t == "img")


def test_a_comparison_lists_only_the_keys_that_differ(workdir):
    same = {"seed": 7, "lists": [1, 2]}
    one = workdir("one", config={"model": {"variant": "Ti/8", "depth": 12}, **same})
    two = workdir("two", config={"model": {"variant": "S/8", "depth": 12}, **same})
    six = workdir("six", config={"model": {"variant": "S/8", "depth": 12.0}, **same})
    before = sorted(path for path in one.rglob("*"))
    out = report.write([one, two, six])
    assert out == one.parent / "comparison.html"
    part = out.read_text().split("Where the configs differ")[1].split("<h2>")[0]
    keys = re.findall(r"<tr><td>([^<]*)</td>", part)
    assert keys == ["model.variant", "model.depth"]
    assert "2 of 4 values differ" in part
    assert sorted(path for path in one.rglob("*")) == before
    said = words(out.read_text())
    assert "one yes 3 56.2 % 57.1 % 43.9 % 51.6 %" in said


def test_equal_configs_are_called_equal(workdir):
    page = report.write([workdir("a"), workdir("b")]).read_text()
    assert "All 2 values are the same" in page


def test_runs_of_one_name_are_told_apart(workdir):
    page = report.write([workdir("a/run"), workdir("b/run")]).read_text()
    assert "<b>a/run</b>" in page and "<b>b/run</b>" in page


def test_lines_cut_off_are_left_out_and_counted(workdir):
    folder = workdir()
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "loss/tot{"step": 5}\n')
        file.write(json.dumps(line(6)) + "\n[1]\n" + '{"step": 7, "lo')
    said = words(report.write([folder]).read_text())
    assert "3 of the lines of metrics.jsonl could not be read" in said
    assert "(line 5, 7, 8)" in said
    assert "Step 6" in said


def test_a_run_that_has_not_logged_yet_makes_a_page(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    out = report.write([tmp_path])
    said = words(out.read_text())
    assert "Not known yet" in said and "not started" in said
    assert "no config.json" in said and "no run.json" in said


def test_what_is_no_run_is_refused_with_what_to_do(tmp_path, workdir):
    with pytest.raises(ValueError, match=r"no metrics\.jsonl; pass the --workdir"):
        report.write([tmp_path])
    with pytest.raises(ValueError, match="no workdir given"):
        report.write([])
    folder = workdir()
    with pytest.raises(ValueError, match="comes twice"):
        report.write([folder, folder])
    (folder / "config.json").write_text('{"a":')
    with pytest.raises(ValueError, match=r"config\.json is no JSON"):
        report.write([folder])


def test_the_page_is_replaced_whole_or_not_at_all(workdir, monkeypatch):
    folder = workdir()
    out = report.write([folder], folder / "deep" / "page.html")
    old = out.read_bytes()

    def full(source, target):
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(OSError, match="disk full"):
            report.write([folder], out)
    assert out.read_bytes() == old
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]


def test_the_config_and_the_way_to_go_on_are_on_the_page(workdir):
    info = {
        "command": "python -m dinov2_jax train --config=c.py",
        "continue": "python -m dinov2_jax train --config=c.py --workdir=runs/x",
        "versions": {"jax": "9.9.9"},
        "parameters": {"backbone": 3000000, "dino_head": 123456},
        "git": None,
    }
    said = words(report.write([workdir(info=info)]).read_text())
    assert f"To go on {info['continue']}" in said
    assert "versions.jax 9.9.9" in said and "3,123,456 parameters" in said
    assert "variant Ti/8" in said and "seed 0" in said
