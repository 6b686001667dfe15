"""The picture of the README is drawn from the run whose figures lie beside it."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture
def picture(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(BENCH))
    sys.modules.pop("picture", None)
    import picture

    return picture


def test_picture_is_that_of_the_run(picture: object) -> None:
    text = (BENCH / "results" / "race.txt").read_text()
    assert picture.picture(picture.rows_of(text)) == (BENCH / "results" / "race.svg").read_text()  # type: ignore[attr-defined]


def test_bars_are_as_long_as_their_figures(picture: object) -> None:
    text = """round 0 a 10 msg/s
median  a & b             1,000 msg/s  cpu   40.0 us/msg   speed x1.00  cpu x1.00 of a & b
median  relay             4,000 msg/s  cpu   10.0 us/msg   speed x4.00  cpu x0.25 of a & b
"""
    rows = picture.rows_of(text)  # type: ignore[attr-defined]
    assert rows == [("a & b", 1000.0, 40.0, 1.0, 1.0), ("relay", 4000.0, 10.0, 4.0, 0.25)]
    drawn = ElementTree.fromstring(picture.picture(rows))  # type: ignore[attr-defined]
    widths = [float(rect.get("width", "")) for rect in drawn.iter("{http://www.w3.org/2000/svg}rect")]
    assert [width / max(widths) for width in widths] == [1.0, 0.25, 0.25, 1.0]
    with pytest.raises(SystemExit, match="no line of medians"):
        picture.rows_of("nothing")  # type: ignore[attr-defined]


def test_readme_quotes_the_run(picture: object) -> None:
    rows = {row[0]: row for row in picture.rows_of((BENCH / "results" / "race.txt").read_text())}  # type: ignore[attr-defined]
    _, _, _, speed, cpu = rows["relay"]
    text = (BENCH.parent / "README.md").read_text()
    assert f"**x{speed:.2f}** as many" in text and f"**x{cpu:.2f}** of its CPU" in text
