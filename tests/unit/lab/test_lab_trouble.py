"""The names of what can be broken, what fits a lab, and what is remembered of it."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import pytest

from pyflannel.core.errors import UsageError
from pyflannel.lab import trouble
from pyflannel.lab.errors import LabError
from pyflannel.lab.faults import FAULTS
from pyflannel.lab.overview import read_status
from pyflannel.lab.topology import LabSpec
from pyflannel.lab.trouble import TROUBLES, Broken


def a_lab(path, **wishes):
    nodes = [SimpleNamespace(number=number) for number in (1, 2, 3)]
    lab = SimpleNamespace(path=path, spec=LabSpec(**wishes), nodes=nodes)
    lab.node = lambda number: nodes[number - 1]
    return lab


@pytest.mark.parametrize("name", [*TROUBLES, *FAULTS])
def test_every_name_is_found_as_it_is_listed_and_as_it_is_told(name):
    assert trouble.named(trouble.slug(name)) == name
    assert trouble.named(name.upper()) == name
    assert f"  {trouble.slug(name)}" in "\n".join(trouble.listing())


def test_no_two_have_one_word():
    slugs = list(map(trouble.slug, [*TROUBLES, *FAULTS]))
    assert len(set(slugs)) == len(slugs)


def test_an_unknown_name_has_a_guess():
    with pytest.raises(UsageError, match="did you mean route-deleted"):
        trouble.named("route deletd")


def test_a_riddle_is_something_that_stays_and_fits():
    assert set(trouble.fitting("vxlan", with_etcd=True)) == set(TROUBLES)
    left = trouble.fitting("host-gw", with_etcd=False)
    assert set(TROUBLES) - set(left) == {"firewall drops the overlay", "etcd frozen"}


def test_the_same_seed_is_the_same_riddle(tmp_path):
    lab = a_lab(tmp_path)
    riddles = {trouble.choose(lab, random.Random("x")) for _ in range(5)}
    assert len(riddles) == 1
    many = [trouble.choose(lab, random.Random(seed)) for seed in range(200)]
    assert {name for name, _ in many} == set(TROUBLES)
    assert {number for _, number in many} == {1, 2, 3}


def test_what_does_not_fit_the_lab_is_refused_before_anything_is_done(tmp_path):
    with pytest.raises(UsageError, match="not in a lab with backend host-gw"):
        trouble.break_it(a_lab(tmp_path, backend="host-gw"), "firewall drops the overlay", 1)
    with pytest.raises(UsageError, match="not on a node with backend"):
        _with_config(trouble.break_it, a_lab(tmp_path, backend="host-gw"), "FDB entry deleted", 1)
    assert trouble.recorded(a_lab(tmp_path)) == []


def _with_config(function, lab, *arguments):
    for node in lab.nodes:
        node.network_config = lab.spec.network_config()
    return function(lab, *arguments)


def test_what_was_broken_is_remembered_until_it_is_healed(tmp_path, monkeypatch):
    monkeypatch.setattr(trouble, "_do", lambda *_: None)
    lab = a_lab(tmp_path)
    assert trouble.recorded(lab) == []
    first = trouble.break_it(lab, "cable pulled", 2)
    second = trouble.break_it(lab, "etcd frozen", 1, hidden=True)
    assert trouble.recorded(lab) == [first, second]
    assert (str(first), str(second)) == ("node2: cable pulled", "etcd frozen")
    assert second.hidden


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"node":1}]', '[{"node":"x","name":"y"}]'])
def test_a_record_that_is_none_is_an_error_with_its_path(tmp_path, text):
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(LabError, match=r"broken\.json"):
        trouble.recorded(a_lab(tmp_path))


def test_a_faults_node_is_told_unless_it_is_about_etcd():
    assert str(Broken(3, "route deleted")) == "node3: route deleted"


@pytest.mark.parametrize(
    ("ready", "problems", "wanted"),
    [
        (True, [], ("running", [])),
        (False, [], ("not ready", [])),
        (
            True,
            [{"text": "It is off.", "remedy": "turn it on"}, {"text": "odd", "remedy": ""}],
            ("running, with problems", ["It is off; turn it on", "odd"]),
        ),
    ],
)
def test_a_daemons_status_in_a_few_words(ready, problems, wanted):
    assert read_status(json.dumps({"ready": ready, "problems": problems})) == wanted
