"""The picture of a terminal: what was printed, in its place, and nothing from elsewhere."""

from __future__ import annotations

import io
import re
from pathlib import Path
from xml.etree import ElementTree as ET

from pyflannel.lab import svg
from pyflannel.lab.stage import Stage

ROOT = Path(__file__).parents[3]
NAME = "{http://www.w3.org/2000/svg}"


def screen(picture):
    """The text of a picture, as a terminal has it."""
    lines = {}
    for row in ET.fromstring(picture).iter(f"{NAME}text"):
        number = (int(row.get("y")) - svg.MARGIN) // svg.LINE
        line = ""
        for span in row.iter(f"{NAME}tspan"):
            column = round((float(span.get("x")) - svg.MARGIN) / svg.COLUMN)
            assert column >= len(line)
            line = line.ljust(column) + span.text
            assert round(float(span.get("textLength")) / svg.COLUMN) == len(span.text)
        lines[number] = line
    return "\n".join(lines.get(k, "") for k in range(max(lines) + 1))


def test_every_character_is_where_the_terminal_has_it():
    text = "a  b\n\n   c    <&>\"'   d   \x1b[36mlong  words\x1b[0m, · ttl"
    assert screen(svg.render(text, "t")) == re.sub("\x1b\\[\\d+m", "", text)


def test_colours_are_classes_and_unknown_codes_are_plain():
    runs = list(svg.runs("\x1b[32;1mgood\x1b[0m \x1b[95mpink\x1b[m end"))
    assert runs == [(0, "good", "32;1"), (5, "pink", "95"), (10, "end", "")]
    picture = svg.render("\x1b[31;1mbad\x1b[0m\x1b[95mx\x1b[0m", "t")
    assert 'class="r">bad' in picture
    assert re.search(r'textLength="8.4">x<', picture)


def test_what_the_stage_shows_is_in_the_picture_with_colours_wherever_it_is_shown():
    out = io.StringIO()
    stage = Stage(out)
    with stage.step("A step"):
        pass
    stage.command("node1", "ip route")
    stage.verdict("all good", good=True)
    assert "\x1b" not in out.getvalue()
    assert screen(stage.picture()) == out.getvalue().strip("\n")
    assert 'class="g">all good' in stage.picture()


def test_the_picture_in_readme_is_one_of_these_and_loads_nothing():
    picture = (ROOT / "docs/pictures/demo.svg").read_text()
    text = screen(picture)
    assert "pairs answered. All gone again" in text
    assert "kernel vxlan" in text
    assert max(map(len, text.splitlines())) <= svg.COLUMNS
    assert re.findall(r"https?://[^\"' <]+", picture.split("<rect")[0]) == [NAME[1:-1]]
    assert not re.search(r"<(script|image|use|foreignObject)|@import|url\(", picture)
    assert "docs/pictures/demo.svg" in (ROOT / "README.md").read_text()
