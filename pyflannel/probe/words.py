"""What a peer's probes say, as sentences for people."""

from __future__ import annotations

from pyflannel.probe.judge import Cause, State, Track
from pyflannel.probe.targets import Target


def sentence(target: Target, track: Track) -> str:
    """Why a peer is not fully up; empty if it is, or if nothing is known."""
    if track.state is State.SMALL_ONLY:
        passed = track.sizes.passed
        most = f"; the largest that passed had {passed}" if passed is not None else ""
        return f"small packets pass, those of {track.sizes.failed} bytes do not{most}"
    if track.state is not State.DOWN:
        return ""
    if target.underlay is None:
        return f"{target.overlay[0]} answered ping and does not any more: the node is away"
    text = f"{target.overlay[0]} answered through the tunnel and does not any more"
    if track.refused:
        text += f" (sending ends with {track.refused})"
    if track.cause is Cause.AWAY:
        return f"{text}, nor does {target.underlay} beside it: the node is away"
    if track.cause is Cause.TUNNEL:
        return f"{text}; {target.underlay} beside it does: the tunnel is broken"
    return (
        f"{text}; the underlay does not answer ping: {target.underlay} never did, so the node may "
        "be away or the tunnel broken"
    )
