"""`pyflannel web`: this node's status as a page."""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Mapping, Sequence
from functools import partial

from pyflannel.cli import status
from pyflannel.cli.parsers import Branch, Parser
from pyflannel.foreign import shown
from pyflannel.web import address
from pyflannel.web.asker import Ask

ABOUT = """\
A map of the cluster as this node sees it, what is wrong and what to do, and the leases; live.
It is a process of its own; started by root, the part that serves the page becomes the user nobody.
Nothing can be changed there.

There is no password. On another address than loopback everyone who reaches it sees the page:
rather use `ssh -L 8780:127.0.0.1:8780 NODE`."""


def main(argv: Sequence[str]) -> int:
    """Runs the command until a signal; returns the exit code."""
    given = branch().parser.parse_args(argv)
    path = given.status_socket
    return serve(given, {socket.gethostname(): partial(status.ask, path)})


def branch() -> Branch:
    """The command line."""
    parser = Parser(
        "pyflannel web",
        "this node's status as a page, live",
        ABOUT,
        examples=("pyflannel web", "pyflannel web 127.0.0.1:9000", "pyflannel web [::1]:8780"),
    )
    add_address(parser)
    status.add_socket_option(parser)
    return Branch(parser)


def add_address(parser: Parser) -> None:
    """Gives a command the argument that says where the page is served."""
    parser.add_argument(
        "address",
        nargs="?",
        default="",
        metavar="ADDRESS:PORT",
        help=f"where, or one of the two (default: 127.0.0.1:{address.PORT})",
    )


def serve(given: argparse.Namespace, sources: Mapping[str, Ask]) -> int:
    """Serves the page about some daemons until a signal; returns the exit code."""
    where = address.parse(given.address)
    if where.for_others:
        print(
            f"warning: everyone who reaches {shown(where.ip)} sees the page: there is no password",
            file=sys.stderr,
        )
    from pyflannel.web.run import run  # with aiohttp, which takes a while

    return run(where, sources, lambda url: print(f"{url}  (Ctrl-C ends it)", flush=True))
