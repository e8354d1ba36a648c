"""nft commands as JSON (libnftables-json(5)).

libnftables is called in this process, through ctypes: a look at the tables then costs a millisecond
instead of a child process. Where the library is missing the `nft` command does the same.
"""

from __future__ import annotations

import ctypes
import json
from typing import Any, Final

from pyflannel.core.errors import CommandError
from pyflannel.kernel import process

Json = dict[str, Any]
LIBRARY: Final = "libnftables.so.1"
NFT_CTX_DEFAULT: Final = 0
NFT_CTX_OUTPUT_JSON: Final = 1 << 4
"""nftables/libnftables.h; makes the output JSON (the input is recognised by itself)."""
DEADLINE_S: Final = 10.0


class Nft:
    """Runs nft commands given as JSON, in this process if libnftables is there."""

    def __init__(self) -> None:
        self._lib: ctypes.CDLL | None = None
        try:
            lib = ctypes.CDLL(LIBRARY)
        except OSError:
            return
        lib.nft_ctx_new.restype = ctypes.c_void_p
        lib.nft_ctx_new.argtypes = [ctypes.c_uint32]
        for name in ("nft_ctx_free", "nft_ctx_buffer_output", "nft_ctx_buffer_error"):
            getattr(lib, name).argtypes = [ctypes.c_void_p]
        for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(lib, name).argtypes = [ctypes.c_void_p]
            getattr(lib, name).restype = ctypes.c_char_p
        lib.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
        lib.nft_ctx_set_dry_run.argtypes = [ctypes.c_void_p, ctypes.c_bool]
        lib.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._lib = lib

    @property
    def in_process(self) -> bool:
        """Whether no child is needed."""
        return self._lib is not None

    async def ask(self, command: Json) -> Json:
        """Runs one listing command given as JSON and returns its answer."""
        return await self.run(json.dumps({"nftables": [command]}))

    async def run(self, text: str, *, check_only: bool = False) -> Json:
        """Runs commands as one transaction and returns the JSON output, `{}` if there is none.

        Raises:
            CommandError: nft's own words.
        """
        code, out, err = (
            self._run_in_process(self._lib, text, check_only=check_only)
            if self._lib is not None
            else await self._run_child(text, check_only=check_only)
        )
        if code != 0:
            raise CommandError(f"nft: {err.strip() or f'exit code {code}'}")
        result: Json = json.loads(out) if out.strip() else {}
        return result

    def _run_in_process(
        self, lib: ctypes.CDLL, text: str, *, check_only: bool
    ) -> tuple[int, str, str]:
        context = lib.nft_ctx_new(NFT_CTX_DEFAULT)
        try:
            lib.nft_ctx_output_set_flags(context, NFT_CTX_OUTPUT_JSON)
            lib.nft_ctx_buffer_output(context)
            lib.nft_ctx_buffer_error(context)
            lib.nft_ctx_set_dry_run(context, check_only)
            code = lib.nft_run_cmd_from_buffer(context, text.encode())
            out = lib.nft_ctx_get_output_buffer(context) or b""
            err = lib.nft_ctx_get_error_buffer(context) or b""
            return code, out.decode(errors="replace"), err.decode(errors="replace")
        finally:
            lib.nft_ctx_free(context)

    async def _run_child(self, text: str, *, check_only: bool) -> tuple[int, str, str]:
        argv = ["nft", "-j", *(["--check"] if check_only else []), "-f", "-"]
        done = await process.run(argv, stdin=text.encode(), timeout_s=DEADLINE_S)
        return done.returncode, done.stdout.decode(), done.stderr.decode(errors="replace")
