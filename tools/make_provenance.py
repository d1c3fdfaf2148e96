"""Writes the provenance of a release: an unsigned in-toto statement with SLSA provenance (slsa.dev/provenance/v1).

    python tools/make_provenance.py FILE ARTIFACT...

The statement names each artifact by its SHA-256, the revision that was built, and the lock files of the build. Sign
FILE with the tool of your organization; check an artifact by comparing its `sha256sum` with the statement.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("requirements.lock", "requirements-build.lock")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def git(*arguments: str) -> str:
    """Output of git; empty outside a checkout."""
    done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def statement(artifacts: list[Path], finished: datetime) -> dict[str, Any]:
    """The statement about these files."""
    source: dict[str, Any] = {
        "uri": "git+local:viewport-relay",
        "digest": {"gitCommit": git("rev-parse", "HEAD")},
    }
    if git("status", "--porcelain"):
        source["annotations"] = {"modified": True}
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": path.name, "digest": {"sha256": sha256(path)}} for path in artifacts],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:viewport-relay:make-release:v1",
                "externalParameters": {"command": "make release"},
                "internalParameters": {"python": platform.python_version(), "platform": platform.platform()},
                "resolvedDependencies": [
                    source,
                    *({"name": lock, "digest": {"sha256": sha256(ROOT / lock)}} for lock in LOCKS),
                ],
            },
            "runDetails": {
                "builder": {"id": "urn:viewport-relay:tools/build-release"},
                "metadata": {"finishedOn": finished.strftime("%Y-%m-%dT%H:%M:%SZ")},
            },
        },
    }


if __name__ == "__main__":
    target, *names = sys.argv[1:]
    text = json.dumps(statement([Path(name) for name in names], datetime.now(UTC)), indent=2)
    Path(target).write_text(text + "\n", "utf-8")
