"""What is made of the answers of the kernel's tools."""

from __future__ import annotations

import json

from pyflannel.diagnose.aroundgather import is_free

# `ip -j -4 neigh show nud all`
ANSWER = """
[{"dst":"10.77.0.4","dev":"d0","lladdr":"02:00:00:00:00:01","extern_learn":null,
  "state":["REACHABLE"]},
 {"dst":"10.77.0.3","dev":"d0","lladdr":"02:00:00:00:00:01","state":["REACHABLE"]},
 {"dst":"10.77.0.2","dev":"d0","lladdr":"02:00:00:00:00:01","state":["PERMANENT"]},
 {"dst":"10.77.0.5","dev":"d0","state":["FAILED"]}]
"""


def test_neighbours_that_are_there_for_good_take_no_place_in_the_table():
    free = {each["dst"] for each in json.loads(ANSWER) if is_free(each)}
    assert free == {"10.77.0.4", "10.77.0.2"}
