"""Builds a stand-in for the base image python:3.Y-slim, for machines without a container registry.

The base is a minimal Debian (mmdebstrap: release and mirrors of this machine) with a Python. Where this machine has a
built Python of the version that the Dockerfile names, the base has that one at /usr/local, as the image has;
otherwise python3 of the release. IMAGE_PYTHON=release forces the second. Unlike in the slim images, manuals are kept:
to leave them out doubles the time.

`Carried` holds what the build steps need to reach the mirrors and package indexes of this machine.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from tests.integration.image.namespaces import Place

ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}

#: apt's proxy and certificate settings of this machine, if there are any.
APT_OPTIONS = re.compile(
    r"Acquire::(?:https?::(?:\S+::)?(?:Proxy|CAInfo|Verify-\w+)|Check-(?:Valid-Until|Date)) .*;"
)

NEEDED = "import ctypes, ensurepip, lzma, sqlite3, ssl, venv"


def said(*command: str | Path) -> str:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stdout


# -- Debian --------------------------------------------------------------------------------------------------------


def sources() -> tuple[str, str]:
    """Name of this machine's release, and the lines of its sources.list that belong to the distribution."""
    (codename,) = re.findall(r"^VERSION_CODENAME=(.+)$", Path("/etc/os-release").read_text(), re.MULTILINE)
    form = "$(ORIGIN)\t$(CODENAME)\tdeb $(REPO_URI) $(RELEASE) $(COMPONENT)"
    lines = []
    for line in said("apt-get", "indextargets", "--format", form, "Created-By: Packages").splitlines():
        origin, name, entry = line.split("\t")
        if origin in {"Debian", "Ubuntu"} and name.startswith(codename) and entry not in lines:
            lines.append(entry)
    return codename, "\n".join(lines) + "\n"


def apt_options() -> list[str]:
    return [
        line for line in said("apt-config", "dump", "Acquire").splitlines() if APT_OPTIONS.fullmatch(line)
    ]


def make_debian(place: Place, root: Path, packages: list[str]) -> None:
    codename, lines = sources()
    options = [f"--aptopt={option}" for option in ["Acquire::Languages none", *apt_options()]]
    options += [f"--include={','.join(packages)}"] if packages else []
    place.run(
        "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--format=directory", *options, codename,
        root, "-", feed=lines,
    )  # fmt: skip


# -- Python --------------------------------------------------------------------------------------------------------


def built_python(version: str) -> Path | None:
    """Prefix of a working Python of this version ("3.13") that was built on this machine, or None."""
    if os.environ.get("IMAGE_PYTHON") == "release":
        return None
    roots = [Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions", Path("/opt/python")]
    candidates = [path for root in roots if root.is_dir() for path in sorted(root.glob(f"*{version}*"))]
    for prefix in [*candidates, Path("/usr/local")]:
        python = prefix / f"bin/python{version}"
        if python.is_file() and (prefix / f"lib/python{version}/ensurepip").is_dir():
            done = subprocess.run([python, "-I", "-c", NEEDED], capture_output=True, check=False)
            if done.returncode == 0:
                return prefix
    return None


def packages_of(prefix: Path, version: str) -> list[str]:
    """Names of the packages whose libraries this Python is linked with; slim images find them in the same way."""
    modules = (prefix / f"lib/python{version}/lib-dynload").glob("*.so")
    # Slim images have no Tk.
    linked = [prefix / f"bin/python{version}", *(path for path in modules if "_tkinter" not in path.name)]
    libraries = set(re.findall(r"=> (/\S+)", said("ldd", *linked)))
    names = {form for library in libraries for form in (library, os.path.realpath(library), library[4:])}
    found = subprocess.run(
        ["dpkg-query", "--search", *sorted(names)], capture_output=True, text=True, check=False
    )
    packages = {line.split(":")[0] for line in found.stdout.splitlines() if not line.startswith("diversion")}
    return sorted(packages)


# -- settings of this machine --------------------------------------------------------------------------------------


@frozen
class Carried:
    """Settings of this machine that build steps see and the image does not keep: pip's settings, files, folders.

    `docker build` has --build-arg (predefined ones), --secret and its own /etc/resolv.conf for them.
    """

    environment: dict[str, str]
    files: dict[str, Path]  # path in the root -> file of this machine
    folders: tuple[Path, ...]  # bound at the same path


def pip_settings() -> Iterator[tuple[str, str]]:
    """(variable, value) of pip's configuration files, then of its environment variables, which take precedence."""
    listing = said(sys.executable, "-m", "pip", "config", "list")
    rows = re.findall(r"^([\w:]+)\.([\w-]+)='(.*)'$", listing, re.MULTILINE)
    for section, name, value in sorted(rows, key=lambda row: bool(row[0] == ":env:")):
        if section in {"global", "install", ":env:"} and "virtualenv" not in name:
            yield "PIP_" + name.upper().replace("-", "_"), value.replace("\\n", " ").strip()


def carried() -> Carried:
    names = {name for lower in ("http_proxy", "https_proxy", "no_proxy") for name in (lower, lower.upper())}
    names |= {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"}
    environment = {name: os.environ[name] for name in sorted(names) if name in os.environ}
    environment |= dict(pip_settings())
    files = {"/etc/resolv.conf": Path("/etc/resolv.conf"), "/etc/hosts": Path("/etc/hosts")}
    folders: list[Path] = []
    for name, value in environment.items():
        moved = []
        for word in value.split():
            path = Path(word.removeprefix("file://"))
            if path.is_absolute() and path.is_file():
                # Not at its own path: a package of the image may contain a file of that name.
                inside = f"/run/carried/{name.lower()}-{path.name}"
                files[inside] = path
                word = inside
            elif path.is_absolute() and path.is_dir():
                # The links of an index point out of its own folder, to files beside it.
                folders.append(path.parent if "INDEX" in name and path.parent != Path("/") else path)
            moved.append(word)
        environment[name] = " ".join(moved)
    return Carried(environment, files, tuple(dict.fromkeys(folders)))
