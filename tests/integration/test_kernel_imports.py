"""Start-up time: of pyroute2 only what is needed is imported, and only when it is."""

import subprocess
import sys

import pytest


def _python(script: str) -> str:
    """Runs a script in a fresh interpreter, where nothing has been imported yet."""
    command = [sys.executable, "-c", script]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
class TestImport:
    """In a fresh interpreter each."""

    def test_pyroute2_is_imported_when_it_is_needed(self) -> None:
        """Not with our module."""
        script = "import sys, pyflannel.kernel.netlink; print('pyroute2' in sys.modules)"
        assert _python(script) == "False\n"

    def test_only_the_message_class_is_imported(self) -> None:
        """Neither the package's __init__ nor its sockets, of which it has dozens."""
        script = (
            "import sys; from pyflannel.kernel import pyroute; pyroute._route_message();"
            "print(sorted(m for m in sys.modules if m in ('pyroute2', 'pyroute2.ndb',"
            "'pyroute2.netlink.nlsocket', 'pyroute2.netlink.rtnl.ifinfmsg',"
            "'pyroute2.netlink.rtnl.rtmsg')))"
        )
        assert _python(script) == "['pyroute2.netlink.rtnl.rtmsg']\n"

    def test_the_whole_pyroute2_can_be_imported_afterwards(self) -> None:
        """Nothing of the placeholder is left."""
        script = (
            "from pyflannel.kernel import pyroute; pyroute._route_message();"
            "import pyroute2; from pyroute2 import AsyncIPRoute; print(pyroute2.IPRoute.__name__)"
        )
        assert _python(script) == "IPRoute\n"

    def test_the_whole_pyroute2_may_have_been_imported_before(self) -> None:
        """Then its classes are used."""
        script = (
            "import pyroute2; from pyflannel.kernel import pyroute; pyroute._route_message();"
            "from pyroute2.netlink.rtnl.rtmsg import rtmsg;"
            "print(pyroute._route_message() is rtmsg)"
        )
        assert _python(script) == "True\n"

    def test_the_ordinary_import_is_the_way_out(self) -> None:
        """When a release does not let its submodules be imported alone."""
        script = (
            "from pyflannel.kernel import pyroute; import sys; load = pyroute._load\n"
            "def picky():\n"
            "    if not hasattr(sys.modules.get('pyroute2'), 'IPRoute'):\n"
            "        if 'pyroute2' in sys.modules: raise ImportError('alone')\n"
            "        import pyroute2\n"
            "    return load()\n"
            "pyroute._load = picky; pyroute._route_message();"
            "print('pyroute2.ndb' in sys.modules)"
        )
        assert _python(script) == "True\n"
