"""Viewport relay: routes end-to-end encrypted frames between coding-agent daemons and their clients."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("viewport-relay")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+source"
