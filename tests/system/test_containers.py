"""The agent in a container, as `docs/containers.md` has it, on booted nodes with docker."""

from __future__ import annotations

import shutil

import pytest

from tests.support.document import follow
from tests.support.machine import HUB, ROOT, Site, run

pytestmark = [pytest.mark.root, pytest.mark.slow]

SLIM = "path-exclude /usr/share/doc/*\npath-include /usr/share/doc/*/copyright\n"
"""What Debian's slim image has in /etc/dpkg/dpkg.cfg.d/docker."""
CHECKOUT = "/var/tmp/checkout"
BUSYBOX = (
    "mkdir -p /tmp/image/bin && cp /bin/busybox /tmp/image/bin/\n"
    "tar -C /tmp/image -c . | docker import -c 'ENTRYPOINT [\"/bin/busybox\"]' - busybox\n"
)


def test_every_command_of_the_document_prints_what_it_shows(package):
    """Debian's and busybox's images are made of trees that are here: no registry is asked."""
    debian = run(ROOT / "tools/node-image.sh", "base", timeout=900).splitlines()[-1]
    with Site("docker") as site:
        site.start_etcd()
        nodes = [site.add_node() for _ in range(2)]
        for node in nodes:
            # Nothing answers there, but at once: `apt-get update` has nothing to wait for.
            node.write("/etc/docker/daemon.json", f'{{"dns": ["{HUB}"]}}')
            node.run("systemctl", "restart", "docker")
            node.shell(BUSYBOX)
        first = nodes[0]
        for part in (f"dist/{package.name}", "packaging/container/Containerfile"):
            target = first.root / CHECKOUT.lstrip("/") / part
            target.parent.mkdir(parents=True)
            shutil.copy(ROOT / part, target)
        base = first.root / "var/tmp/debian.tar"
        run("tar", "-C", debian, "--exclude=./usr/share/doc/*", "-cf", base, ".", timeout=120)
        slim = first.root / "var/tmp/slim/etc/dpkg/dpkg.cfg.d/docker"
        slim.parent.mkdir(parents=True)
        slim.write_text(SLIM)
        run("tar", "-C", first.root / "var/tmp/slim", "-rf", base, "./etc/dpkg/dpkg.cfg.d/docker")
        first.run("docker", "import", "/var/tmp/debian.tar", "debian:bookworm-slim", timeout=120)
        base.unlink()

        def build(script: str) -> str:
            printed = first.shell(f"cd {CHECKOUT}\n{script}", timeout=300)
            image = first.root / "var/tmp/pyflannel.tar"
            if image.exists():
                shutil.copy(image, nodes[1].root / "var/tmp")
            return printed

        shells = {node.hostname: node.shell for node in nodes}
        shells["build"] = build
        try:
            assert follow(ROOT / "docs/containers.md", shells) > 15
        except AssertionError:
            for node in nodes:
                print(node.run("docker", "logs", "pyflannel", check=False))
            raise
