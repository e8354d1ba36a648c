"""What a process that took the daemon over would try on its node; prints what worked, as JSON.

Runs by itself on a node with any Python, inside the unit's sandbox or, for comparison, outside.
Nothing of it does harm where it works: files are made and removed, sockets are connected to.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUSER = 0x10000000
PTRACE_SEIZE = 0x4206
TUNSETIFF = 0x400454CA
SYS_BPF = {"x86_64": 321, "aarch64": 280}
OBJ_GET = 7
SOCKETS = (
    "/run/dbus/system_bus_socket",
    "/run/systemd/private",
    "/run/docker.sock",
    "/var/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/other.sock",
    "/var/lib/lxd/unix.socket",
)
WRITES = (
    "/run/systemd/system/evil.service",
    "/run/evil",
    "/etc/systemd/system/evil.service",
    "/usr/local/bin/evil",
    "/var/lib/evil",
    "/root/evil",
)
READS = ("/etc/shadow", "/etc/ssh/key", "/var/lib/docker/secret", "/root/secret")
OWN_WRITES = ("/run/flannel/own", "/var/lib/pyflannel/own")


def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def connect(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)


def write(path):
    Path(path).write_text("")
    Path(path).unlink()


def rewrite(path):
    """Writes to a setting what it is."""
    file = Path(path)
    file.write_text(file.read_text())


def join(path):
    descriptor = os.open(path, os.O_RDONLY)
    checked(LIBC.setns(descriptor, 0))


def mount():
    checked(LIBC.mount(b"none", b"/tmp", b"tmpfs", 0, None))
    LIBC.umount(b"/tmp")


def become_nobody():
    """A child, so that the rest is tried as before."""
    code = "import os; os.setuid(65534)"
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)


def set_uid_file():
    path = Path("/var/lib/pyflannel/own")
    try:
        path.write_text("")
        path.chmod(0o4755)
        assert path.stat().st_mode & 0o4000
    finally:
        path.unlink()


def device():
    os.mknod("/var/lib/pyflannel/null", 0o20666, os.makedev(1, 3))
    Path("/var/lib/pyflannel/null").unlink()


def seize(pid):
    checked(LIBC.ptrace(PTRACE_SEIZE, pid, None, None))


def look_into(pid):
    """Its memory, which is what matters: its environment may be empty."""
    with Path(f"/proc/{pid}/mem").open("rb"):
        pass


def foreign_pin():
    """Another program's map, which a BPF file system gives to any root process."""
    path = ctypes.create_string_buffer(b"/sys/fs/bpf/foreign")
    attr = ctypes.create_string_buffer(struct.pack("<QII", ctypes.addressof(path), 0, 0), 64)
    descriptor = LIBC.syscall(SYS_BPF[os.uname().machine], OBJ_GET, attr, 64)
    checked(descriptor)
    os.close(descriptor)


def tun():
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", b"hostile0", 1 | 0x1000))
    finally:
        os.close(descriptor)


def route():
    """Adds an address to the loopback device and takes it away again."""
    for verb in ("add", "del"):
        words = ["ip", "address", verb, "198.51.100.9/32", "dev", "lo"]
        subprocess.run(words, check=True, stderr=subprocess.DEVNULL)


def notify():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("/run/systemd/notify")


def main():
    other = int(sys.argv[1])
    escapes = {f"connect {path}": (connect, path) for path in SOCKETS}
    escapes |= {f"write {path}": (write, path) for path in WRITES}
    escapes |= {f"read {path}": (lambda path: Path(path).read_bytes(), path) for path in READS}
    escapes |= {
        "write core_pattern": (rewrite, "/proc/sys/kernel/core_pattern"),
        "make a user namespace": (lambda: checked(LIBC.unshare(CLONE_NEWUSER)),),
        "join another network namespace": (join, "/run/netns/other"),
        "join another mount namespace": (join, f"/proc/{other}/ns/mnt"),
        "look into another process": (look_into, other),
        "another process's root": (lambda: Path(f"/proc/{other}/root/etc/hostname").read_bytes(),),
        "seize another process": (seize, other),
        "mount": (mount,),
        "become another user": (become_nobody,),
        "make a set-user-id file": (set_uid_file,),
        "make a device": (device,),
        "open the kernel's log": (lambda: Path("/dev/kmsg").open("rb").close(),),
        "open a foreign pin": (foreign_pin,),
        "open a packet socket": (lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),),
    }
    needs = {f"write {path}": (write, path) for path in OWN_WRITES}
    needs |= {
        "set ip_forward": (rewrite, "/proc/sys/net/ipv4/ip_forward"),
        "open TUN": (tun,),
        "set addresses": (route,),
        "notify": (notify,),
    }
    report = {"escapes": {}, "needs": {}}
    for kind, attempts in (("needs", needs), ("escapes", escapes)):
        for name, (attempt, *arguments) in attempts.items():
            # Joining another namespace, or a user namespace, would be for the rest as well.
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                answer = b"worked"
                try:
                    attempt(*arguments)
                except BaseException as error:  # noqa: BLE001 - whatever it is, is the answer
                    answer = repr(error).encode()
                os.write(writer, answer)
                os._exit(0)
            os.close(writer)
            with os.fdopen(reader, "rb") as answers:
                report[kind][name] = answers.read().decode()
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)
    Path("/var/lib/pyflannel/report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
