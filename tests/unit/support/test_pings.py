"""When the pings that a test misses were sent."""

from __future__ import annotations

from tests.support.machine import lost_after, no_room

KILLED = 1000.035


def output(*numbers: int) -> str:
    """Of a ping every 10 ms from 1000.01 on; the reply takes 2 ms."""
    return "".join(
        f"[{1000 + number / 100 + 0.002:.6f}] 64 bytes from 10.0.1.1: icmp_seq={number} ttl=62 "
        "time=2.00 ms\n"
        for number in numbers
    )


def test_none_is_lost() -> None:
    assert lost_after("PING 10.0.1.1\n" + output(1, 2, 3, 4, 5), KILLED) == 0


def test_what_the_process_had_in_its_hands_was_sent_before() -> None:
    assert lost_after(output(1, 4, 5), KILLED) == 0


def test_what_was_sent_afterwards_is_counted() -> None:
    assert lost_after(output(1, 2, 6, 7), KILLED) == 2
    assert lost_after(output(1, 2, 3, 6, 7), KILLED) == 2


def test_replies_in_another_order_are_none_lost() -> None:
    assert lost_after(output(1, 3, 2, 5, 4), KILLED) == 0


def test_what_a_socket_had_no_room_for() -> None:
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid"
    row = "00000000:0001 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 2961 2 0"
    table = f"{head}  timeout inode ref pointer drops\n    1: {row} 21\n    2: {row} 0\n"
    assert no_room(table + table) == 42
