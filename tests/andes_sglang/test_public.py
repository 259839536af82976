"""What is public, what the wheel holds, and one version for all of it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import andes_sglang
from andes_sglang.cli import main

ROOT = Path(__file__).parents[2]
HEAVY = {"numpy", "sglang", "torch", "fastapi", "kopf", "jinja2", "aiohttp"}


@pytest.mark.parametrize("name", andes_sglang.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    found = getattr(andes_sglang, name)
    assert name == "__version__" or found.__doc__


def test_a_type_checker_sees_the_same_names_in_the_same_places() -> None:
    tree = ast.parse((ROOT / "andes_sglang" / "__init__.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module != "importlib"]
    typed = {
        alias.asname: (node.module, alias.name)
        for node in imports
        if node.module != "__future__"
        for alias in node.names
    }
    assert typed == {name: (f"andes_sglang.{module}", own) for name, (module, own) in andes_sglang._HOMES.items()}


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'andes_sglang' has no attribute 'QoeTarget'"):
        _ = andes_sglang.QoeTarget  # type: ignore[attr-defined]
    assert {*andes_sglang.__all__} <= {*dir(andes_sglang)}


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys, andes_sglang; print(*sorted(m.partition('.')[0] for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())
    code = "import sys; from andes_sglang import *; print(*sorted(m.partition('.')[0] for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & HEAVY == {"numpy"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_the_wheel_is_typed_and_holds_every_file(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for package, where in (("andes_sglang", ROOT), ("andes_api", ROOT / "api"), ("andes_operator", ROOT / "operator")):
        assert f"{package}/py.typed" in names
        files = {str(path.relative_to(where)) for path in (where / package).rglob("*.*") if path.suffix != ".pyc"}
        assert files <= names
    assert {n.partition("/")[0].partition("-")[0] for n in names} == {"andes_sglang", "andes_api", "andes_operator"}


def test_one_version(wheel: zipfile.ZipFile, capsys: pytest.CaptureFixture[str]) -> None:
    version = andes_sglang.__version__
    metadata = wheel.read(f"andes_sglang-{version}.dist-info/METADATA").decode()
    assert f"\nVersion: {version}\n" in metadata
    assert "\nProject-URL: " in metadata
    chart = yaml.safe_load((ROOT / "charts" / "andes" / "Chart.yaml").read_text())
    assert (str(chart["appVersion"]), str(chart["version"])) == (version, version)
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
    for command in ((), ("gateway",), ("operator",)):
        with pytest.raises(SystemExit) as ended:
            main([*command, "--version"])
        assert ended.value.code == 0
        assert capsys.readouterr().out == f"andes {version}\n"
    written = [
        path.relative_to(ROOT)
        for folder in ("andes_sglang", "api", "operator")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(rf"""["']{re.escape(version)}["']""", path.read_text())
    ]
    assert written == [Path("andes_sglang/__init__.py")]


@pytest.mark.parametrize("argv", [[], ["help"], ["--help"]])
def test_help_without_a_command(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(command in said for command in ("serve", "bench", "gateway", "operator", "plan"))


def test_help_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["help", "report"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: andes report")


def test_ctrl_c_at_any_moment_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Also while a command's modules are imported; those of ``andes`` itself take no time."""

    def interrupted(_module: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("andes_sglang.cli.import_module", interrupted)
    assert main(["simulate", "--profile", "x"]) == 130
    assert capsys.readouterr().err == "\nandes simulate: interrupted\n"
    code = "import sys, andes_sglang.cli; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_page_of_the_layout_names_every_module_of_the_core() -> None:
    page = (ROOT / "docs" / "index.md").read_text()
    core = ROOT / "andes_sglang"
    modules = {p.name for p in core.glob("*.py") if p.stem != "__init__"}
    packages = {f"{p.parent.name}/" for p in core.glob("*/__init__.py")}
    assert {name for name in modules | packages if not re.search(rf"\b{re.escape(name)}", page)} == set()
    layers = re.search(
        r"name = \"The core's rooms\".*?layers = \[(.*?)\n\]", (ROOT / "pyproject.toml").read_text(), re.S
    )
    assert layers is not None
    told = [
        line.strip().split("   ")[0].split(", ") for line in page.split("## Imports")[1].split("\n\n")[2].splitlines()
    ]
    assert told == [layer.split(" | ") for layer in re.findall(r'"(.+?)"', layers[1])]


@pytest.mark.parametrize(
    ("package", "command", "extra"),
    [
        ("jinja2", "report", "bench"),
        ("aiohttp", "bench", "bench"),
        ("prometheus_client", "compare", "bench"),
        ("scipy", "plan", "plan"),
    ],
)
def test_a_command_whose_extra_is_missing_says_what_to_install(package: str, command: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None; from andes_sglang.cli import main; sys.exit(main([{command!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"andes {command}: {command} needs {package}: install andes-sglang[{extra}]" in done.stderr
