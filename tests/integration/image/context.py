"""COPY from the build context: the files that .dockerignore does not exclude."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from tests.integration.image.dockerfile import Copy


class Ignore:
    """Patterns of .dockerignore: the last one that matches a path or a folder above it decides."""

    def __init__(self, text: str) -> None:
        self._rules = []
        for line in text.splitlines():
            pattern = line.strip()
            if pattern and not pattern.startswith("#"):
                kept = pattern.startswith("!")
                self._rules.append((kept, re.compile(self._expression(pattern.lstrip("!").strip("/")))))

    @staticmethod
    def _expression(pattern: str) -> str:
        parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
        pieces = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
        return "".join(parts.get(piece, re.escape(piece)) for piece in pieces) + "(?:/.*)?"

    def __call__(self, path: Path) -> bool:
        ignored = False
        for kept, rule in self._rules:
            if rule.fullmatch(path.as_posix()):
                ignored = not kept
        return ignored


def copy_context(context: Path, step: Copy, root: Path) -> None:
    """Copy as COPY does: a folder's content, a file by its name; owner root. Raises if a source is missing."""
    ignored = Ignore((context / ".dockerignore").read_text("utf-8"))
    for source in step.sources:
        start = context / source
        files = [start] if start.is_file() else [path for path in start.rglob("*") if not path.is_dir()]
        files = [path for path in files if not ignored(path.relative_to(context))]
        if not files:
            raise FileNotFoundError(
                f"line {step.line}: nothing to copy at {source}, or .dockerignore hides it"
            )
        for path in files:
            target = root / step.target.strip("/")
            if path != start:
                target = target / path.relative_to(start)
            elif step.target.endswith("/") or target.is_dir():
                target = target / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target, follow_symlinks=False)
            os.chown(target, 0, 0, follow_symlinks=False)
