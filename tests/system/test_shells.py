"""The completion of zsh and fish, in these shells."""

from __future__ import annotations

import subprocess

import pytest

from pyflannel.cli import completion

pytestmark = [pytest.mark.slow]

PLACES = {words: place for words, place in completion.places().items() if place.options}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    directory = tmp_path_factory.mktemp("completion")
    for shell in ("zsh", "fish"):
        (directory / shell).write_text(completion.script(shell))
    return directory


def said(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stderr == ""
    return done.stdout


def in_fish(script, lines):
    """What fish offers for each line."""
    asked = "\n".join(f"complete -C '{line}' | string split -f1 \\t; echo ---" for line in lines)
    parts = said("fish", "--no-config", "-c", f"source {script}\n{asked}").split("---\n")
    return [part.split() for part in parts[: len(lines)]]


def in_zsh(script, lines):
    """What zsh offers for each line; its own part, which draws the list, is stood in for."""
    asked = "\n".join(
        f"words=({line} {last or repr('')}); CURRENT=$#words; _pyflannel; echo ---"
        for line, last in lines
    )
    own = "compdef() { : }; _files() { : }; _describe() { local n=$@[-1]; print -l -- ${(P)n} }"
    parts = said("zsh", "-f", "-c", f"{own}\nsource {script}\n{asked}").split("---\n")
    return [[row.partition(":")[0] for row in part.splitlines()] for part in parts[: len(lines)]]


def test_fish_offers_everything_at_every_place(scripts):
    lines = [f"{words} {end}" for words in PLACES for end in ("-", "--", "")]
    found = in_fish(scripts / "fish", lines)
    for (words, place), short, long, bare in zip(
        PLACES.items(), found[::3], found[1::3], found[2::3], strict=True
    ):
        assert {each.name for each in place.options} <= {*short, *long}, words
        if place.actions:
            assert sorted(bare) == sorted(place.actions), words


def test_fish_knows_the_action_wherever_options_stand(scripts):
    lines = ["pyflannel lab --json status --na", "pyflannel trace --protocol t", "pyflannel -"]
    found = in_fish(scripts / "fish", lines)
    assert found[:2] == [["--name"], ["tcp"]]
    assert "--name" not in found[2]


def test_zsh_offers_everything_at_every_place(scripts):
    lines = [(words, end) for words in PLACES for end in ("-", "")]
    found = in_zsh(scripts / "zsh", lines)
    for (words, place), options, bare in zip(PLACES.items(), found[::2], found[1::2], strict=True):
        assert options == [each.name for each in place.options], words
        assert bare == list(place.actions), words


def test_zsh_knows_the_action_wherever_options_stand(scripts):
    (found,) = in_zsh(scripts / "zsh", [("pyflannel --json help lab status", "-")])
    assert found == [each.name for each in PLACES["pyflannel lab status"].options]
