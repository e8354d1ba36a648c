"""One suite over both ways of attaching programs: tcx, and filters of tc."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from pyflannel.core.errors import KernelError
from pyflannel.datapath.ebpf import attachment, bpf, clsact, tcx
from pyflannel.datapath.ebpf.attachment import Attachment
from pyflannel.kernel import tc
from tests.contract.datapath_rigs import Namespace

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.guest]

SIDES = {"goes_in": bpf.TCX_INGRESS, "goes_out": bpf.TCX_EGRESS}
WAYS: dict[str, ModuleType] = {"tcx": tcx, "clsact": clsact}
CLASSES = {"tcx": tcx.TcxLinks, "clsact": clsact.ClsactFilters}
DROP_ALL = ["bpf", "da", "bytecode", "1,6 0 0 2"]
"""BPF_RET | BPF_K, TC_ACT_SHOT."""


@pytest.fixture(params=list(WAYS))
def way(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    reason = attachment.probe_all()[name]
    if reason and name == "tcx":
        pytest.skip(f"this kernel has no tcx: {reason}")
    assert not reason
    return name


@pytest.fixture
def space() -> Iterator[Namespace]:
    """A network namespace with devices `dev0` and `dev1`; the test's thread is inside."""
    made = Namespace()
    made.ip(
        "link set lo up",
        "link add dev0 type veth peer name peer0",
        "link add dev1 type veth peer name peer1",
    )
    with made.entered():
        yield made
    made.close()


@pytest.fixture
def pins() -> Iterator[Path]:
    """A directory in a BPF file system; the mount goes with the test."""
    base = Path(f"/run/pyflannel-test-bpffs-{os.getpid()}")
    base.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", str(base)], check=True)
    try:
        (base / "ours").mkdir()
        yield base / "ours"
    finally:
        subprocess.run(["umount", str(base)], check=True)
        base.rmdir()


@pytest.fixture
def new(way: str, space: Namespace, pins: Path) -> Iterator[Callable[..., Attachment]]:
    """Makes attachments with programs of their own, as each start of the daemon does."""
    del space
    with contextlib.ExitStack() as undo:

        def make(directory: Path | None = pins, way: str = way) -> Attachment:
            programs = {
                name: bpf.load_program(name, bpf.ASK_THE_NEXT, b"GPL\0", side)
                for name, side in SIDES.items()
            }
            for fd in programs.values():
                undo.callback(os.close, fd)
            made: Attachment = CLASSES[way](programs, SIDES, directory)
            undo.callback(made.close)
            loaded[id(made)] = {name: bpf.object_id(fd) for name, fd in programs.items()}
            return made

        yield make


loaded: dict[int, dict[str, int]] = {}
"""Ids of the programs of each attachment."""


def index(device: str) -> int:
    return socket.if_nametoindex(device)


def everywhere(device: str) -> dict[str, int]:
    return dict.fromkeys(SIDES, index(device))


def running(device: str) -> dict[str, list[int]]:
    """Ids of the programs at each side of a device, tcx and filters alike, as the kernel tells."""
    found: dict[str, list[int]] = {"goes_in": [], "goes_out": []}
    for name, side in SIDES.items():
        found[name] += bpf.attached_tcx(index(device), side)
        found[name] += [
            each.program
            for each in tc.filters(
                index(device), tc.Side.INGRESS if side == bpf.TCX_INGRESS else tc.Side.EGRESS
            )
            if each.program
        ]
    return found


def of(made: Attachment) -> dict[str, list[int]]:
    return {name: [number] for name, number in loaded[id(made)].items()}


NOTHING: dict[str, list[int]] = {"goes_in": [], "goes_out": []}


def test_a_program_is_at_each_place(new: Callable[..., Attachment], way: str) -> None:
    made = new()
    assert made.name == way
    made.place(everywhere("dev0"))
    assert running("dev0") == of(made)
    assert made.mend() == []


def test_the_next_start_takes_the_place_of_the_former(new: Callable[..., Attachment]) -> None:
    first, second = new(), new()
    first.place(everywhere("dev0"))
    first.close()
    assert running("dev0") == of(first)
    second.place(everywhere("dev0"))
    assert running("dev0") == of(second)
    assert second.mend() == []


def test_without_pins_they_end_with_the_daemon(new: Callable[..., Attachment]) -> None:
    made = new(None)
    made.place(everywhere("dev0"))
    assert running("dev0") == of(made)
    made.close()
    made.close()
    assert running("dev0") == NOTHING
    assert tc.hooks() == {}


@pytest.mark.parametrize("again", [False, True], ids=["same process", "next start"])
def test_at_former_places_nothing_is_left(new: Callable[..., Attachment], *, again: bool) -> None:
    made = new()
    made.place(everywhere("dev0"))
    if again:
        made.close()
        made = new()
    made.place({"goes_in": index("dev1")})
    assert running("dev0") == NOTHING
    assert running("dev1") == {"goes_in": of(made)["goes_in"], "goes_out": []}
    assert index("dev0") not in tc.hooks()


def detach(way: str, made: Attachment, pins: Path) -> None:
    """What anybody with root may do."""
    del made
    if way == "clsact":
        subprocess.run(["tc", "qdisc", "del", "dev", "dev0", "clsact"], check=True)
        return
    for pin in pins.glob("link-*"):
        link = bpf.get_pinned(str(pin))
        assert link is not None
        bpf.detach(link)
        os.close(link)


def test_what_others_have_detached_is_attached_again(
    new: Callable[..., Attachment], way: str, pins: Path
) -> None:
    made = new()
    made.place(everywhere("dev0"))
    detach(way, made, pins)
    assert running("dev0") == NOTHING
    assert made.mend() == ["program goes_in", "program goes_out"]
    assert running("dev0") == of(made)
    assert made.mend() == []


def test_what_others_have_unpinned_is_pinned_again(
    new: Callable[..., Attachment], pins: Path
) -> None:
    made = new()
    made.place(everywhere("dev0"))
    names = {pin.name for pin in pins.iterdir()}
    assert names
    for pin in pins.iterdir():
        pin.unlink()
    assert made.mend()
    assert {pin.name for pin in pins.iterdir()} == names
    assert made.mend() == []


def test_without_the_device_the_error_names_it(new: Callable[..., Attachment]) -> None:
    with pytest.raises(KernelError, match=r"interface 4711.*ENODEV"):
        new().place({"goes_in": 4711})


def test_another_way_leaves_nothing_of_the_former(
    new: Callable[..., Attachment], way: str, pins: Path
) -> None:
    """As after an update of the daemon, within one boot: from either way to the other."""
    if attachment.probe_all()["tcx"]:
        pytest.skip("this kernel has one way only")
    (other,) = WAYS.keys() - {way}
    former = new(way=other)
    former.place(everywhere("dev0"))
    former.close()
    made = new()
    made.place(everywhere("dev0"))
    assert len(running("dev0")["goes_in"]) == 2
    assert len(attachment.remove_others(made, pins)) >= 2
    assert running("dev0") == of(made)
    assert made.mend() == []
    assert attachment.remove_others(made, pins) == []


def filters(device: str) -> list[dict[str, object]]:
    """As tc shows them."""
    command = ["tc", "-j", "filter", "show", "dev", device, "ingress"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [each for each in json.loads(done.stdout) if each.get("options")]


class TestOthersFilters:
    """A qdisc is everybody's."""

    @pytest.fixture
    def theirs(self, space: Namespace) -> int:
        """Another program has the qdisc, with a filter at our preference and one without a
        preference."""
        space.run("tc", "qdisc", "add", "dev", "dev0", "clsact")
        add = ["tc", "filter", "add", "dev", "dev0", "ingress"]
        space.run(*add, "prio", str(clsact.PREFERENCE), "protocol", "arp", *DROP_ALL)
        space.run(*add, *DROP_ALL)
        return len(filters("dev0"))

    def test_stay(self, new: Callable[..., Attachment], way: str, theirs: int, pins: Path) -> None:
        made = new()
        made.place(everywhere("dev0"))
        assert len(filters("dev0")) == theirs + (way == "clsact")
        assert made.mend() == []
        made.close()
        WAYS[way].remove(pins)
        assert running("dev0") == NOTHING
        assert len(filters("dev0")) == theirs

    @pytest.mark.parametrize("way", ["clsact"], indirect=True)
    def test_keep_their_preference_and_ours_is_asked_before_those_without(
        self, new: Callable[..., Attachment], theirs: int
    ) -> None:
        new().place(everywhere("dev0"))
        found = tc.filters(index("dev0"), tc.Side.INGRESS)
        assert len(found) == theirs + 1
        (ours,) = [each for each in found if each.name == "pyflannel:goes_in"]
        others = [each.preference for each in found if each != ours]
        assert ours.preference == clsact.PREFERENCE + 1
        assert sorted(others) == [clsact.PREFERENCE, 49152]

    @pytest.mark.parametrize("way", ["clsact"], indirect=True)
    def test_that_came_later_keep_the_qdisc_that_we_made(
        self, new: Callable[..., Attachment], space: Namespace, pins: Path
    ) -> None:
        new().place(everywhere("dev0"))
        space.run("tc", "filter", "add", "dev", "dev0", "ingress", *DROP_ALL)
        assert len(clsact.remove(pins)) == 2
        assert len(filters("dev0")) == 1

    @pytest.mark.parametrize("way", ["clsact"], indirect=True)
    def test_a_qdisc_that_others_made_again_is_theirs(
        self, new: Callable[..., Attachment], space: Namespace, pins: Path
    ) -> None:
        made = new()
        made.place(everywhere("dev0"))
        space.run("tc", "qdisc", "del", "dev", "dev0", "clsact")
        space.run("tc", "qdisc", "add", "dev", "dev0", "clsact")
        assert made.mend()
        clsact.remove(pins)
        assert tc.hooks() == {index("dev0"): "clsact"}

    @pytest.mark.parametrize("way", ["clsact"], indirect=True)
    def test_a_qdisc_that_we_made_goes_also_after_a_restart(
        self, new: Callable[..., Attachment], pins: Path
    ) -> None:
        for _ in range(2):
            made = new()
            made.place(everywhere("dev0"))
            made.close()
        assert tc.hooks() == {index("dev0"): "clsact"}
        assert len(clsact.leftovers()) == 2
        clsact.remove(pins)
        assert tc.hooks() == {}
        assert clsact.leftovers() == []

    @pytest.mark.parametrize("way", ["clsact"], indirect=True)
    def test_a_qdisc_ingress_serves_what_comes_in_and_is_named_for_the_rest(
        self, new: Callable[..., Attachment], space: Namespace
    ) -> None:
        space.run("tc", "qdisc", "add", "dev", "dev0", "ingress")
        made = new()
        made.place({"goes_in": index("dev0")})
        assert running("dev0")["goes_in"] == of(made)["goes_in"]
        with pytest.raises(KernelError, match=r"dev0, whose qdisc ingress.*tc qdisc del dev dev0"):
            new().place({"goes_out": index("dev0")})


def test_the_probe_leaves_nothing(space: Namespace) -> None:
    before = space.run("ip", "-o", "link")
    assert attachment.probe_all()["clsact"] == ""
    assert space.run("ip", "-o", "link") == before
    assert tc.hooks() == {}
    assert bpf.attached_tcx(index("lo"), bpf.TCX_INGRESS) == []


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch, space: Namespace) -> None:
    del space
    monkeypatch.setenv(attachment.FORCED, "clsact")
    assert attachment.probe() == ("clsact", "")
    assert attachment.attach({}, {}, None).name == "clsact"
