"""A token bucket in the kernel's units.

A packet takes a token per byte. Tokens come back at the bucket's rate, until it is full again with its burst.
"""

from __future__ import annotations

# net/pkt_sched.h: PSCHED_SHIFT; also the first two numbers of /proc/net/psched.
_TICK = 64  # nanoseconds

_MAX_U32 = (1 << 32) - 1  # struct tc_tbf_qopt has no wider fields


class Bucket:
    """A rate in bytes per second, a burst in bytes, and the milliseconds that a packet may wait for tokens."""

    __slots__ = ("burst", "latency", "rate")

    def __init__(self, rate: int, burst: int, latency: int) -> None:
        self.rate = rate
        self.burst = burst
        self.latency = latency

    @property
    def limit(self) -> int:
        """Return the bytes that may wait; further packets are dropped."""
        return min(self.rate * self.latency // 1000 + self.burst, _MAX_U32)

    @property
    def ticks(self) -> int:
        """Return the time of the burst at the bucket's rate; at most 275 s, the maximum of the kernel's field."""
        return min(_ticks(self._microseconds), _MAX_U32)

    @property
    def wrapped_ticks(self) -> int:
        """Return the ticks of Go's plugin, which overflow if the burst takes longer than the kernel's field holds."""
        return _ticks(self._microseconds & _MAX_U32) & _MAX_U32

    @property
    def largest_packet(self) -> int:
        """Return the bytes of the largest packet that a full bucket has the tokens for; tbf drops any larger one."""
        return self.ticks * _TICK * self.rate // 10**9

    @property
    def _microseconds(self) -> int:
        return self.burst * 10**6 // self.rate


def _ticks(microseconds: int) -> int:
    return microseconds * 1000 // _TICK
