"""How etcd is started."""

from __future__ import annotations

import os
from pathlib import Path

from pyflannel.lab.etcdprogram import etcd_command, etcd_environment


def test_one_member_is_a_cluster_of_its_own_and_tells_its_clients_the_first_url():
    command = etcd_command(
        "/opt/etcd",
        name="m0",
        data=Path("/run/x"),
        clients=("http://192.0.2.1:2379", "http://127.0.0.1:2379"),
        peer="http://127.0.0.1:2380",
        options=("--heartbeat-interval=10",),
    )
    assert command[0] == "/opt/etcd"
    assert "--advertise-client-urls=http://192.0.2.1:2379" in command
    assert "--listen-client-urls=http://192.0.2.1:2379,http://127.0.0.1:2379" in command
    assert "--initial-cluster=m0=http://127.0.0.1:2380" in command
    assert command[-1] == "--heartbeat-interval=10"


def test_what_the_shell_has_for_etcd_does_not_reach_ours(monkeypatch):
    """`ETCD_CERT_FILE` of an operator's shell would have the lab's etcd speak TLS."""
    monkeypatch.setenv("ETCD_CERT_FILE", "/etc/etcd/server.pem")
    assert (os.environ | etcd_environment())["ETCD_CERT_FILE"] == ""
