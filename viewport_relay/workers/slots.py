"""The worker of a workspace, by hash. Pure function: there is no table that could fill up."""

from __future__ import annotations

from zlib import crc32


def slot(workspace_id: str, workers: int) -> int:
    """Return the worker's number, 0 to `workers` - 1: CRC-32 of the workspace id modulo `workers`.

    The runtime target does not count: a client's target may come from its claims, which are known only after the
    platform has answered, and the rate of a workspace must be counted in one process.
    """
    return crc32(workspace_id.encode("utf-8", "surrogatepass")) % workers
