"""What `pip install .` brings: the wheel is built and looked into.

Oracles: the files of the checkout, Airflow's schema of provider descriptions.
"""

import configparser
import json
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

import winback

ROOT = Path(__file__).resolve().parent.parent
DIST_INFO = f"winback-{winback.__version__}.dist-info"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel, built from a copy of the checkout after a dbt run."""
    folder = tmp_path_factory.mktemp("wheel")
    checkout = folder / "any-name"
    built = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, checkout, ignore=built)
    for leftover in ("target/manifest.json", "logs/dbt.log"):
        file = checkout / "dbt_project" / leftover
        file.parent.mkdir(exist_ok=True)
        file.write_text("{}")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(folder)]
    done = subprocess.run([*command, checkout], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def members(wheel: zipfile.ZipFile) -> set[str]:
    return {name for name in wheel.namelist() if not name.endswith("/")}


def test_nothing_but_winback_is_at_the_top_level(wheel):
    assert {name.split("/")[0] for name in members(wheel)} == {"winback", DIST_INFO}


def test_the_whole_package_is_inside(wheel):
    expected = {f"winback/{path.name}" for path in ROOT.glob("*.py")} | {"winback/py.typed"}
    for package in package_folders():
        expected |= {f"winback/{package}/{path.name}" for path in (ROOT / package).glob("*.py")}
    assert expected <= members(wheel)


def test_the_dbt_project_and_the_suites_are_inside_without_leftovers(wheel):
    inside = members(wheel)
    project = {
        f"winback/{path.relative_to(ROOT).as_posix()}"
        for path in (ROOT / "dbt_project").rglob("*")
        if path.suffix in {".sql", ".yml", ".md", ".csv"}
        and not {"target", "logs"} & set(path.parts)
        and path.name != ".user.yml"
    }
    suites = {f"winback/expectations/{path.name}" for path in ROOT.glob("expectations/*.yml")}
    assert "winback/dbt_project/dbt_project.yml" in project
    assert "winback/expectations/sources.yml" in suites
    assert project | suites <= inside
    assert not [name for name in inside if {"target", "logs"} & set(name.split("/"))]


def test_it_has_the_command_and_the_provider(wheel):
    parser = configparser.ConfigParser()
    parser.read_string(wheel.read(f"{DIST_INFO}/entry_points.txt").decode())
    assert dict(parser["console_scripts"]) == {"winback": "winback.__main__:main"}
    assert parser["apache_airflow_provider"]["provider_info"] == "winback:provider_info"


def package_folders() -> set[str]:
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    return folders - {"build", "tests", ROOT.name}


def test_the_list_of_packages_is_the_list_of_folders(wheel):
    listed = {str(Path(name).parent) for name in members(wheel) if name.endswith("__init__.py")}
    assert listed == {"winback"} | {f"winback/{folder}" for folder in package_folders()}


def test_airflow_finds_the_provider_and_its_description_is_valid():
    found = entry_points(group="apache_airflow_provider")
    (ours,) = (point for point in found if point.value.startswith("winback:"))
    schema = json.loads(files("airflow").joinpath("provider_info.schema.json").read_text())
    jsonschema.validate(ours.load()(), schema)


def test_operators_and_models_cannot_be_imported_without_winback(tmp_path):
    code = "import winback; from importlib.util import find_spec as find; "
    code += "print(find('operators'), find('models'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "None None\n", done.stderr
