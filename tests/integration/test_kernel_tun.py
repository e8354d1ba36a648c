"""TUN devices of the real kernel, in namespaces of their own."""

import contextlib
import errno
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pyflannel.core.errors import DeviceUnavailable, KernelError, NotPermitted
from pyflannel.kernel import tun
from pyflannel.kernel.tun import adopt_tun, open_tun, set_offload
from tests.support.netns import in_new_netns

NOBODY = 65534


def _names() -> list[str]:
    return sorted(line.split(":")[0].strip() for line in _lines() if ":" in line)


def _lines() -> list[str]:
    return Path("/proc/thread-self/net/dev").read_text().splitlines()


@pytest.mark.root
def test_a_device_has_the_name_that_was_asked_for_and_goes_with_its_descriptor() -> None:
    """Non-blocking, not inherited, without packet information or virtio-net headers."""

    def body() -> None:
        device = open_tun("flannel0")
        assert device.name == "flannel0"
        assert device.fds == (device.fd,)
        assert (device.vnet_hdr, device.multi_queue) == (False, False)
        assert device.flags & tun.IFF_NO_PI
        assert not os.get_blocking(device.fd)
        assert fcntl.fcntl(device.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        assert "flannel0" in _names()
        device.close()
        device.close()
        assert device.fds == ()
        assert "flannel0" not in _names()

    in_new_netns(body)


@pytest.mark.root
def test_a_template_takes_the_first_free_number() -> None:
    """As upstream's `flannel%d` does."""

    def body() -> None:
        first, second = open_tun("flannel%d"), open_tun("flannel%d")
        assert (first.name, second.name) == ("flannel0", "flannel1")
        first.close()
        second.close()

    in_new_netns(body)


@pytest.mark.root
def test_packets_come_out_as_they_are() -> None:
    """One read, one IP packet; nothing to read is EAGAIN."""

    def body() -> None:
        device = open_tun("flannel0")
        for words in ("addr add 10.5.1.0/32 dev flannel0", "link set flannel0 up"):
            subprocess.run(["ip", *words.split()], check=True)
        subprocess.run(["ip", "route", "add", "10.5.0.0/16", "dev", "flannel0"], check=True)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"payload", ("10.5.9.9", 9))
        packets = []
        with contextlib.suppress(BlockingIOError):
            while True:
                packets.append(os.read(device.fd, 2000))
        # IPv6 says a few things by itself when a link goes up.
        (datagram,) = [packet for packet in packets if packet[0] >> 4 == 4]
        assert datagram[12:20] == bytes([10, 5, 1, 0, 10, 5, 9, 9])
        assert datagram.endswith(b"payload")
        device.close()

    in_new_netns(body)


@pytest.mark.root
def test_queues_and_headers_are_granted_on_request() -> None:
    """Each queue is a descriptor; offloads can be switched."""

    def body() -> None:
        device = open_tun("flannel0", vnet_hdr=True, multi_queue=True, queues=3)
        assert len(set(device.fds)) == 3
        assert device.vnet_hdr
        assert device.multi_queue
        set_offload(device.fd, 0x01 | 0x02 | 0x04)  # TUN_F_CSUM, _TSO4, _TSO6
        with pytest.raises(KernelError) as refusal:
            set_offload(device.fd, 1 << 30)
        assert refusal.value.errno == errno.EINVAL
        device.close()
        assert "flannel0" not in _names()

    in_new_netns(body)


@pytest.mark.root
def test_a_persistent_device_outlives_its_descriptor_and_is_taken_over() -> None:
    """Also with other headers than before."""

    def body() -> None:
        device = open_tun("flannel0")
        device.set_persistent(True)
        device.close()
        assert "flannel0" in _names()
        again = open_tun("flannel0", vnet_hdr=True)
        assert again.vnet_hdr
        again.set_persistent(False)
        again.close()
        assert "flannel0" not in _names()

    in_new_netns(body)


@pytest.mark.root
def test_a_device_that_another_process_has_open_is_unavailable() -> None:
    """The message speaks of another daemon."""

    def body() -> None:
        holder = open_tun("flannel0")
        with pytest.raises(DeviceUnavailable, match="another flannel daemon") as refusal:
            open_tun("flannel0")
        assert refusal.value.errno == errno.EBUSY
        holder.close()

    in_new_netns(body)


HOLD = """
import sys
from pyflannel.kernel.tun import open_tun
device = open_tun("flannel0")
print("open", flush=True)
sys.stdin.read()
"""


@pytest.mark.root
def test_who_has_it_open_is_named() -> None:
    """Of this network namespace; every lab on the machine may have a device of that name."""

    def body() -> None:
        child = subprocess.Popen(
            [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"open\n"
            with pytest.raises(DeviceUnavailable, match=rf"\(pid {child.pid}\) has it open"):
                open_tun("flannel0")
        finally:
            child.communicate(timeout=30)
        assert tun.find_holder("flannel0") == ""

    in_new_netns(body)


@pytest.mark.root
def test_a_name_of_another_kind_of_device_is_unavailable() -> None:
    """The message says how to get rid of it."""

    def body() -> None:
        subprocess.run(["ip", "link", "add", "flannel0", "type", "bridge"], check=True)
        with pytest.raises(DeviceUnavailable, match="ip link del flannel0"):
            open_tun("flannel0")

    in_new_netns(body)


@pytest.mark.root
def test_without_the_capability_it_is_not_permitted() -> None:
    """Which one is said."""

    def body() -> None:
        os.setgroups([])
        os.setuid(NOBODY)
        with pytest.raises(NotPermitted, match="CAP_NET_ADMIN"):
            open_tun("flannel0")

    in_new_netns(body)


def test_a_missing_device_node_is_unavailable(tmp_path: Path) -> None:
    """The message names module and node."""
    with pytest.raises(DeviceUnavailable, match="modprobe tun"):
        open_tun("flannel0", path=str(tmp_path / "tun"))


@pytest.mark.parametrize(
    ("name", "queues"), [("", 1), ("a-name-too-long-for-it", 1), ("a/b", 1), ("flannel0", 2)]
)
def test_nonsense_is_refused_before_anything_is_opened(name: str, queues: int) -> None:
    """Names that are none, and queues without multi_queue."""
    with pytest.raises(ValueError, match=r"name|queues"):
        open_tun(name, queues=queues)


@pytest.mark.root
def test_a_descriptor_of_an_earlier_process_is_adopted_if_it_fits() -> None:
    def body() -> None:
        device = open_tun("flannel0", vnet_hdr=True)
        kept = [os.dup(device.fd) for _ in range(3)]
        device.close()
        assert "flannel0" in _names()
        assert adopt_tun(kept[0], "flannel0") is None
        assert adopt_tun(kept[1], "flannel1", vnet_hdr=True) is None
        adopted = adopt_tun(kept[2], "flannel0", vnet_hdr=True)
        assert adopted is not None
        assert adopted.vnet_hdr
        adopted.close()
        assert "flannel0" not in _names()

    in_new_netns(body)


@pytest.mark.root
def test_what_is_no_tun_any_more_is_not_adopted() -> None:
    def body() -> None:
        kept = os.dup(open_tun("flannel0").fd)
        subprocess.run(["ip", "link", "del", "flannel0"], check=True)
        assert adopt_tun(kept, "flannel0") is None
        assert adopt_tun(os.open("/dev/null", os.O_RDONLY), "flannel0") is None

    in_new_netns(body)
