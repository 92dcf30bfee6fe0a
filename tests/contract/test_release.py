"""What is released: wheel and sdist, built and checked, and the wheel in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from zipfile import ZipFile

import yaml

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def output_of(*command: str | Path, **given) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **given)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_and_sdist_are_whole_and_the_wheel_works_alone(tmp_path: Path):
    """One test, since the wheel is built once."""
    dist, python = tmp_path / "dist", Path(sys.executable)
    output_of(python, "-m", "build", "--no-isolation", "--outdir", dist, ROOT)
    (wheel,) = dist.glob("*.whl")
    names = sorted(path.name for path in dist.iterdir())
    assert names == [f"maskwright-{VERSION}-py3-none-any.whl", f"maskwright-{VERSION}.tar.gz"]
    output_of(python, "-m", "twine", "check", "--strict", *dist.iterdir())
    output_of(python, "-m", "check_wheel_contents", "--ignore", "W002", wheel)  # the weights' licence is there twice
    check_contents(wheel)
    check_alone(wheel, tmp_path)


def check_contents(wheel: Path) -> None:
    """Every file of the package that git knows is in the wheel, and no other."""
    tracked = output_of("git", "ls-files", "--cached", "--others", "--exclude-standard", "src/maskwright", cwd=ROOT)
    inside = {name for name in ZipFile(wheel).namelist() if name.startswith("maskwright/")}
    assert inside == {name.removeprefix("src/") for name in tracked.splitlines()}
    assert "maskwright/py.typed" in inside


def check_alone(wheel: Path, folder: Path) -> None:
    """Installed where nothing of this checkout is; only the libraries are those of the tests."""
    home = folder / "environment"
    venv.create(home, with_pip=False)
    scripts = home / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    output_of(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        wheel,
        cwd=folder,
    )
    packages = output_of(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (Path(packages) / "libraries.pth").write_text("\n".join(libraries))
    maskwright, picture = scripts / "maskwright", ROOT / "examples" / "cat.jpg"
    assert output_of(maskwright, "--version", cwd=folder) == f"maskwright {VERSION}\n"
    where = output_of(python, "-c", "import maskwright; print(maskwright.__file__)", cwd=folder)
    assert Path(where.strip()).is_relative_to(home)
    output_of(maskwright, "predict", picture, "--boxes", "40,40,295,477", "--out", "masks", cwd=folder)
    assert (folder / "masks" / "cat_overlay.jpg").is_file()


def test_the_citation_has_what_its_schema_asks_for():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    allowed = {"cff-version", "message", "title", "type", "abstract", "license", "authors", "keywords", "references"}
    assert citation.keys() <= allowed  # the version stays in one place, pyproject.toml
    assert citation["license"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= reference.keys()
        assert all(set(author) == {"family-names", "given-names"} for author in reference["authors"])
        assert all(set(identifier) == {"type", "value"} for identifier in reference["identifiers"])
