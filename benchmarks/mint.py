"""Keys and relay tokens for a benchmark: RS256, one key, valid for one day.

    python benchmarks/mint.py FOLDER PAIRS [--fresh N]

writes `jwks.json`, `tokens.tsv` (for each pair a daemon's line, then a client's) and `fresh.tsv` (clients for single
use, each with its own workspace). A line has role, workspace, target and token, separated by tabs. The private key is
not stored.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from jwt.algorithms import RSAAlgorithm

KID = "bench-1"
LIFE = 86_400


def token(key: RSAPrivateKey, role: str, workspace: str, target: str, now: int) -> str:
    """A token with the usual claims of a platform."""
    claims = {
        "iss": "viewport-server",
        "aud": "viewport-relay",
        "iat": now,
        "nbf": now,
        "exp": now + LIFE,
        "ver": 1,
        "jti": f"{role}-{workspace}",
        "role": role,
        "scope": "runtime",
        "clientId": f"{role}-{workspace}",
        "userId": f"user-{workspace}",
        "machineId": f"machine-{workspace}",
        "workspaceId": workspace,
        "runtimeTargetId": target,
        "e2eeProfile": "noise-ik",
    }
    return jwt.encode(claims, key, algorithm="RS256", headers={"kid": KID})


def write_tokens(path: Path, key: RSAPrivateKey, names: Iterable[tuple[str, str, str]]) -> None:
    """One line for each (role, workspace, target)."""
    now = int(time.time())
    with path.open("w") as lines:
        for role, workspace, target in names:
            lines.write(f"{role}\t{workspace}\t{target}\t{token(key, role, workspace, target, now)}\n")


def mint(folder: Path, pairs: int, fresh: int) -> None:
    """Write the three files."""
    folder.mkdir(parents=True, exist_ok=True)
    key = generate_private_key(public_exponent=65_537, key_size=2048)
    public = json.loads(RSAAlgorithm.to_jwk(key.public_key()))
    del public["key_ops"]
    (folder / "jwks.json").write_text(
        json.dumps({"keys": [{**public, "kid": KID, "alg": "RS256", "use": "sig"}]})
    )
    roles = ("workspace-daemon", "client")
    write_tokens(
        folder / "tokens.tsv",
        key,
        ((role, f"bench-{pair:06d}", f"target-{pair:06d}") for pair in range(pairs) for role in roles),
    )
    write_tokens(
        folder / "fresh.tsv", key, (("client", f"fresh-{n:06d}", f"target-{n:06d}") for n in range(fresh))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("pairs", type=int)
    parser.add_argument("--fresh", type=int, default=0)
    options = parser.parse_args()
    mint(options.folder, options.pairs, options.fresh)


if __name__ == "__main__":
    main()
