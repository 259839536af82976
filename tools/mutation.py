"""Mutation testing: which small changes to a room's code do its tests not notice?

``make mutation`` runs every room of ``tools/mutation.toml``, ``make mutation ROOM=policy`` one and prints what survives. The
work is mutmut's; this file lays a room out as mutmut wants it, in ``out/mutation/ROOM`` (packages at the root, whatever
folder they have in the repository), and reports. A run that was stopped continues where it was; functions that have changed
are tested again, and survivors too if any test has changed. Results: ``out/mutation/ROOM/result.json``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ROOT / "tools" / "mutation.toml"
OUT = ROOT / "out" / "mutation"
MUTMUT = str(Path(sys.executable).parent / "mutmut")
PACKAGES = {"andes_sglang": "andes_sglang", "andes_api": "api/andes_api", "andes_operator": "operator/andes_operator"}
BESIDE = ("tests", "tools", "charts", "docs")
"""What tests read beside the packages."""
KILLED = {1: "killed", 3: "killed", 36: "timeout", 24: "timeout", -24: "timeout", 152: "timeout", 255: "timeout",
          -11: "killed", -9: "killed"}  # fmt: skip
"""mutmut's exit codes of a mutant that was noticed; 0 has survived, 33 has no test at all, None was not tried."""


class RoomError(ValueError):
    """A room that is not configured, or a path of it that does not exist."""


@dataclass(frozen=True)
class Room:
    """A row of ``tools/mutation.toml`` with its globs expanded: files and folders, relative to the repository."""

    name: str
    mutate: tuple[Path, ...]
    tests: tuple[Path, ...]
    skip: tuple[str, ...]


def _expand(room: str, key: str, globs: Iterable[str], root: Path) -> list[Path]:
    found: list[Path] = []
    for glob in globs:
        matched = [path for path in root.glob(glob) if path.suffix == ".py" or (path.is_dir() and path.name[0] != "_")]
        if not matched:
            raise RoomError(f"tools/mutation.toml: rooms.{room}.{key}: {glob!r} matches nothing; say where it is now")
        found += matched
    return found


def load_rooms(path: Path = ROOMS, root: Path = ROOT) -> tuple[dict[str, Room], list[str]]:
    """The rooms by name, and patterns of the lines that are not mutated. RoomError: a path that does not exist."""
    config = tomllib.loads(path.read_text())
    rooms = {}
    for name, row in config["rooms"].items():
        left_out = set(_expand(name, "except", row.get("except", ()), root))
        mutate: set[Path] = set()
        for found in _expand(name, "mutate", row["mutate"], root):
            mutate |= set(found.rglob("*.py")) if found.is_dir() else {found}
        tests = _expand(name, "tests", row["tests"], root)
        rooms[name] = Room(
            name,
            tuple(sorted(file.relative_to(root) for file in mutate - left_out)),
            tuple(sorted({test.relative_to(root) for test in tests})),
            tuple(row.get("skip", ())),
        )
    return rooms, list(config["skip_lines"])


def _flat(path: Path) -> Path:
    """Where a file of the repository lies in a room's folder."""
    for package, home in PACKAGES.items():
        if path.is_relative_to(home):
            return Path(package) / path.relative_to(home)
    return path


def _sync(source: Path, target: Path) -> bool:
    """As rsync --delete: files that have not changed keep their times, by which mutmut knows what is left to do. True: some
    file has changed."""
    changed = False
    wanted = {p.relative_to(source) for p in source.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    for stale in [p for p in target.rglob("*") if p.is_file() and p.relative_to(target) not in wanted]:
        stale.unlink()
        changed = True
    for name in wanted:
        new, old = source / name, target / name
        if not old.exists() or old.read_bytes() != new.read_bytes():
            old.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(new, old)
            changed = True
    return changed


def lay_out(room: Room, skip_lines: Sequence[str], folder: Path) -> bool:
    """Make or refresh the project that mutmut runs in. True: what runs against the mutants has changed."""
    for package, home in PACKAGES.items():
        _sync(ROOT / home, folder / package)
        for gone in (folder / "mutants" / package).rglob("*.py"):
            if not (folder / gone.relative_to(folder / "mutants")).exists():
                gone.unlink()
    changed = False
    for name in BESIDE:
        changed |= _sync(ROOT / name, folder / name)
        shutil.rmtree(folder / "mutants" / name, ignore_errors=True)  # mutmut copies without deleting
    pytest = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    selection = [*map(str, room.tests), "-m", "not engine and not server and not cluster"]
    if room.skip:
        selection += ["-k", " and ".join(f"not {word}" for word in room.skip)]
    mutmut = {
        "source_paths": list(PACKAGES),
        "only_mutate": [str(_flat(path)) for path in room.mutate],
        "also_copy": list(BESIDE),
        "do_not_mutate_patterns": list(skip_lines),
        "pytest_add_cli_args_test_selection": selection,
        "pytest_add_cli_args": ["-p", "no:cacheprovider"],
        "use_git_change_detection": False,
        "on_dependency_change": "ignore",
    }
    lines = ["[tool.pytest.ini_options]", *(f"{key} = {json.dumps(value)}" for key, value in pytest.items())]
    lines += ["[tool.mutmut]", *(f"{key} = {json.dumps(value)}" for key, value in mutmut.items())]
    project, text = folder / "pyproject.toml", "\n".join(lines) + "\n"
    changed |= not project.exists() or project.read_text() != text
    project.write_text(text)
    return changed


def read_results(folder: Path) -> dict[str, int | None]:
    """Mutants and how the tests ended on each, as mutmut has kept them."""
    results: dict[str, int | None] = {}
    for path in sorted((folder / "mutants").rglob("*.py.meta")):
        if (folder / path.relative_to(folder / "mutants").with_suffix("")).exists():
            results |= json.loads(path.read_text())["exit_code_by_key"]
    return results


def summary(results: Mapping[str, int | None]) -> dict[str, int]:
    """Counts of killed (a timeout is one), survived, without a test, and not yet tried."""
    names = {0: "survived", 33: "no tests", 5: "no tests", None: "not tried"}
    count = Counter("killed" if code in KILLED else names.get(code, "suspicious") for code in results.values())
    return {"mutants": len(results), **{key: count[key] for key in ("killed", "survived", "no tests", "not tried")}}


def survivors(results: Mapping[str, int | None]) -> list[str]:
    return [name for name, code in results.items() if code is not None and code not in KILLED]


def run_room(room: Room, skip_lines: Sequence[str], *, jobs: int | None) -> Mapping[str, int | None]:
    """Run one room to its end; the names of its mutants and the exit codes of the tests."""
    folder = OUT / room.name
    if lay_out(room, skip_lines, folder):
        (folder / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)  # which test reaches what
        for path in (folder / "mutants").rglob("*.py.meta"):
            meta = json.loads(path.read_text())
            codes = meta["exit_code_by_key"]
            meta["exit_code_by_key"] = {key: code if code in KILLED else None for key, code in codes.items()}
            path.write_text(json.dumps(meta))
    command = [MUTMUT, "run", *([] if jobs is None else ["--max-children", str(jobs)])]
    with (folder / "log").open("w") as log:
        done = subprocess.run(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise RoomError(f"{room.name}: mutmut ended with {done.returncode}; see {folder / 'log'}")
    results = read_results(folder)
    (folder / "result.json").write_text(json.dumps({**summary(results), "survivors": survivors(results)}, indent=1))
    return results


def show(folder: Path, name: str) -> str:
    """The change that this mutant makes, as the lines of a diff that differ."""
    command = [MUTMUT, "show", name]
    text = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout
    lines = [line for line in text.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    return "\n".join([name, *lines])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mutation", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help="rooms of tools/mutation.toml; all by default")
    parser.add_argument("--survivors", action="store_true", help="print what each survivor changes")
    parser.add_argument("--check", action="store_true", help="only check that the configured paths exist")
    parser.add_argument("--jobs", type=int, help="mutants at a time; as many as the machine has cores by default")
    options = parser.parse_args(argv)
    try:
        rooms, skip_lines = load_rooms()
        unknown = set(options.rooms) - rooms.keys()
        if unknown:
            raise RoomError(
                f"no room {', '.join(sorted(unknown))} in tools/mutation.toml; there are {', '.join(rooms)}"
            )
        for name in [] if options.check else options.rooms or rooms:
            results = run_room(rooms[name], skip_lines, jobs=options.jobs)
            count = summary(results)
            tried = max(1, count["mutants"] - count["not tried"])
            print(f"{name:10} {count['killed'] / tried:6.1%} killed of {tried}, {count['no tests']} without a test, "
                  f"{count['not tried']} not tried", flush=True)  # fmt: skip
            if options.survivors:
                for survivor in survivors(results):
                    print(show(OUT / name, survivor), end="\n\n", flush=True)
    except RoomError as error:
        print(f"mutation: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
