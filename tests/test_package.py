"""The Debian package's metadata: what it names is there, and is what the install script installs. Packages are built by
`cargo deb`, which is not needed here."""

import os
import pathlib
import subprocess
import tomllib

import pytest

from harness.server import BINARY, ROOT

MANIFEST = ROOT / "engine/Cargo.toml"
DEB = tomllib.loads(MANIFEST.read_text())["package"]["metadata"]["deb"]
SCRIPTS = MANIFEST.parent / DEB["maintainer-scripts"]
PROGRAMS = "target/release/"


def sources():
    """(file, where it goes, mode) of every asset, globs resolved as cargo-deb does."""
    for source, target, mode in DEB["assets"]:
        if source.startswith(PROGRAMS):
            yield source, target + source.removeprefix(PROGRAMS), mode
            continue
        found = sorted(MANIFEST.parent.glob(source)) if "*" in source else [MANIFEST.parent / source]
        assert found, source
        for path in found:
            assert path.is_file(), source
            yield path.resolve(), target + path.name, mode


def test_every_asset_is_there():
    programs = {source.removeprefix(PROGRAMS) for source, _, _ in sources() if str(source).startswith(PROGRAMS)}
    assert programs == {"shardwire", "shardwirectl", "shardwire-loadtest"}
    made = set()
    for member in ("engine", "ctl", "loadtest"):
        manifest = tomllib.loads((ROOT / member / "Cargo.toml").read_text())
        made.add(manifest["package"]["name"])
        made |= {program["name"] for program in manifest.get("bin", [])}
    assert programs <= made
    assert (MANIFEST.parent / DEB["license-file"][0]).is_file()


def test_what_the_install_script_installs_is_in_the_package_with_the_same_mode(tmp_path):
    subprocess.run(
        ["sh", str(ROOT / "systemd/install.sh"), "--root", str(tmp_path), "--binary", str(BINARY)], check=True, timeout=60
    )
    packaged = {target: int(mode, 8) for _, target, mode in sources()}
    installed = {
        str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()
    }
    assert installed.items() <= packaged.items()
    settings = {f"/{target}" for target in packaged if target.startswith("etc/")}
    assert set(DEB["conf-files"]) == settings, "the operator's changes outlive an upgrade"


@pytest.mark.parametrize("name", ["postinst", "prerm", "postrm"])
def test_maintainer_scripts_are_shell_and_name_only_what_is_packaged(name):
    script = SCRIPTS / name
    assert os.access(script, os.X_OK)
    assert subprocess.run(["sh", "-n", str(script)], timeout=60).returncode == 0
    targets = {f"/{target}" for _, target, _ in sources()}
    for word in script.read_text().split():
        if word.startswith(("/usr/lib/s", "/usr/lib/t")):
            assert word in targets, word
    assert {path.name for path in pathlib.Path(SCRIPTS).iterdir()} == {"postinst", "prerm", "postrm", "copyright"}
