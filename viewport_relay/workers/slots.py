"""Which worker a workspace belongs to. Pure arithmetic: nothing is remembered, so nothing can be filled up."""

from __future__ import annotations

from zlib import crc32


def slot(workspace_id: str, workers: int) -> int:
    """0 to `workers` - 1, the same for a workspace as long as the number of workers stays.

    The workspace alone decides, and not the runtime target: a client's target may come from its claims, which are
    known only after the platform was asked, and the workspace's own rate must be counted in one place.
    """
    return crc32(workspace_id.encode("utf-8", "surrogatepass")) % workers
