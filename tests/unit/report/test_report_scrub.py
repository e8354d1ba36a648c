"""Secrets do not leave the machine, and what is none stays."""

from __future__ import annotations

import pytest

from pyflannel.report.scrub import scrubbed

SECRET = "hunter2-S"
KEY = f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\nabc==\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    "text",
    [
        f"FLANNELD_ETCD_PASSWORD={SECRET}",
        f'FLANNELD_ETCD_PASSWORD="{SECRET} x"',
        f'FLANNEL_OPTIONS="--etcd-username=u --etcd-password={SECRET}"',
        f"ExecStart=pyflanneld --etcd-password {SECRET} --iface eth0",
        f"pyflanneld -etcd-password='{SECRET} y'",
        f"FLANNELD_ETCD_ENDPOINTS=http://root:{SECRET}@192.0.2.1:2379",
        f"http://{SECRET}@h/",
        f'{{"token": "{SECRET}"}}',
        f'{{"log": "{{\\"password\\":\\"{SECRET}\\"}}"}}',
        f"psk: {SECRET}",
        f"Authorization: Bearer {SECRET}",
        f"API_KEY={SECRET}",
        f"client_secret = {SECRET}",
        KEY,
        KEY[:60],  # cut off
    ],
)
def test_a_secret_is_removed(text):
    assert SECRET not in scrubbed(text)
    assert "***" in scrubbed(text)


@pytest.mark.parametrize(
    "text",
    [
        "FLANNELD_ETCD_PASSWORD_FILE=/etc/pyflannel/etcd-password",
        "--etcd-password-file=/etc/pyflannel/etcd-password",
        "--etcd-keyfile=/etc/pyflannel/client.key",
        "10.5.7.0/24 via 10.5.7.0 dev flannel.1 onlink",
        "PublicIP: 192.0.2.7, VtepMAC 02:00:00:00:00:07",
        "http://192.0.2.1:2379 user@host",
        "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----",
        "a password is asked for",
    ],
)
def test_what_is_none_stays(text):
    assert scrubbed(text) == text


def test_what_stands_beside_a_secret_stays():
    text = scrubbed(f"A=1 --etcd-password={SECRET} --iface=eth0\nB=2")
    assert text == "A=1 --etcd-password=*** --iface=eth0\nB=2"
