"""``make chart``: what is made from charts/andes/values.yaml: its JSON schema, its table in README.md, and the snapshots of
what the chart renders; and from the programs: what gateway settings, flags, options and profiles there are, which the
chart's guards look names up in. ``--check`` only says what is out of date."""

from __future__ import annotations

import argparse
import difflib
import functools
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from helm_python import _native
from helm_python.chart import Chart

from andes_api.settings import GatewaySettings
from andes_operator import settings as operator_settings
from andes_sglang.policy.options import PolicyOptions
from andes_sglang.policy.registry import POLICIES, find_policy
from andes_sglang.sim.server import serve as simulated

ROOT = Path(__file__).parent.parent
CHART = ROOT / "charts" / "andes"
TESTS = ROOT / "tests" / "charts"
EVERYTHING = [
    "monitoring.coreos.com/v1", "gateway.networking.k8s.io/v1", "inference.networking.k8s.io/v1",
    "leaderworkerset.x-k8s.io/v1", "keda.sh/v1alpha1", "route.openshift.io/v1",
]  # fmt: skip
"""APIs that clusters may have beside their own."""

_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
_AS_TEXT = {
    "integer": "^[-+]?[0-9]+$",
    "number": r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$",
    "boolean": "^(true|false)$",
}
"""How each is written as text."""
_TABLE = re.compile(r"(?<=<!-- values -->\n).*(?=<!-- end of values -->)", re.DOTALL)


def leaves(text: str) -> Iterator[tuple[tuple[str, ...], Any, str, dict[str, Any]]]:
    """(path, default, comment, schema) of every value, in order."""
    lines = text.splitlines()

    def walk(node: yaml.MappingNode, values: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[Any]:
        for key, child in node.value:
            here, default = (*path, key.value), values[key.value]
            above = key.start_mark.line
            while above > 0 and lines[above - 1].strip().startswith("#"):
                above -= 1
            comment = [line.strip().removeprefix("#").strip() for line in lines[above : key.start_mark.line]]
            schema = [line.removeprefix("@schema") for line in comment if line.startswith("@schema")]
            if isinstance(default, dict) and default and not schema:
                yield from walk(child, default, here)
                continue
            typed = {} if default is None else {"type": _TYPES[type(default)]}
            said = yaml.safe_load(schema[0]) if schema else {}
            yield here, default, " ".join(line for line in comment if not line.startswith("@schema")), typed | said

    yield from walk(yaml.compose(text, yaml.CSafeLoader), yaml.safe_load(text), ())


def _plain(schema: Any) -> Any:
    """A JSON schema without what only repeats names and defaults. What the gateway reads from text may be text, as
    ``--set-string`` and variables of other tools give it."""
    if isinstance(schema, list):
        return [_plain(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {
        key: {name: _plain(one) for name, one in part.items()} if key == "properties" else _plain(part)
        for key, part in schema.items()
        if key not in ("title", "default")
    }
    if (kind := plain.get("type")) in _AS_TEXT:
        plain |= {"type": [kind, "string"], "pattern": _AS_TEXT[kind]}
    return plain


def _described(profile: Path) -> str:
    said = tomllib.loads(profile.read_text())
    return f"{said['model']} on {said['hardware']}"


def known() -> dict[str, Any]:
    """What the programs in the chart's images understand: flags of simulated engine and operator, the options of every policy
    that declares them, and packaged profiles, with model and hardware that they are of."""

    def flags(add: Callable[[argparse.ArgumentParser], None]) -> list[str]:
        parser = argparse.ArgumentParser()
        add(parser)
        return sorted(flag for flag in parser._option_string_actions if flag.startswith("--"))

    declared = {name: getattr(find_policy(name), "options_type", None) for name in sorted(POLICIES)}
    return {
        "flags": {"sim": flags(simulated.add_arguments), "operator": flags(operator_settings.add_arguments)},
        "policies": {
            name: sorted([*(field.name for field in fields(options)), *options.renamed])
            for name, options in declared.items()
            if options is not None and issubclass(options, PolicyOptions)
        },
        "profiles": {
            path.stem: _described(path) for path in sorted((ROOT / "andes_sglang/sim/profiles").glob("*.toml"))
        },
    }


def json_schema(text: str) -> str:
    """values.schema.json: strict, so that a misspelt value is refused by name; the gateway's settings as it declares them."""
    root: dict[str, Any] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {"global": {"type": "object"}},
    }
    for path, default, comment, schema in leaves(text):
        at = root
        for name in path[:-1]:
            strict = {"type": "object", "additionalProperties": False, "properties": {}}
            at = at["properties"].setdefault(name, strict)
        at["properties"][path[-1]] = {"description": comment, **schema, "default": default}
    settings = _plain(GatewaySettings.model_json_schema())
    root["$defs"] = settings.pop("$defs")
    gateway = root["properties"]["gateway"]["properties"]
    gateway["settings"] |= {"properties": settings["properties"], "additionalProperties": False}
    return json.dumps({"$schema": "http://json-schema.org/draft-07/schema#", **root}, indent=2) + "\n"


def table(text: str) -> str:
    rows = [
        f"| `{'.'.join(path)}` | `{json.dumps(default)}` | {comment.replace('|', chr(92) + '|')} |"
        for path, default, comment, _ in leaves(text)
    ]
    return "\n".join(["", "| value | default | |", "|---|---|---|", *rows, "", ""])


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a.b": 1}`` as ``{"a": {"b": 1}}``."""
    values: dict[str, Any] = {}
    for path, value in dotted.items():
        *parents, last = path.split(".")
        at = values
        for name in parents:
            at = at.setdefault(name, {})
        at[last] = value
    return values


class _Strict(yaml.CSafeLoader):
    """Refuses a key that is there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"twice: {twice}", node.start_mark)
        return super().construct_mapping(node, deep)


def render(
    values: Mapping[str, Any] | None = None, apis: list[str] = EVERYTHING, kubernetes: str = "v1.33.0", **options: Any
) -> dict[str, str]:
    """What the chart renders, by template; ``values`` by dotted path. The binding's own render() takes no API versions,
    though the library below it does."""
    options = {"name": "demo", "namespace": "chat", "api_versions": apis, "kube_version": kubernetes} | options
    with Chart.load(CHART) as chart:
        answer = _native.call_string("helm_render", chart._raw(), json.dumps(nested(values or {})), json.dumps(options))
    return {path.removeprefix("andes/templates/"): text for path, text in json.loads(answer).items()}


def parsed(rendered: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    """The objects of templates, by template."""
    documents = {path: list(yaml.load_all(rendered[path], _Strict)) for path in rendered if path != "NOTES.txt"}
    return {path: [o for o in found if o] for path, found in documents.items() if any(found)}


def objects(values: Mapping[str, Any] | None = None, **options: Any) -> dict[str, list[dict[str, Any]]]:
    """The objects rendered, by template."""
    return parsed(render(values, **options))


@functools.cache
def _texts(values: str) -> dict[str, str]:
    lines = {path: [line for line in text.splitlines() if line] for path, text in render(json.loads(values)).items()}
    texts = {path: "\n".join(found) for path, found in lines.items() if found and path != "crds.yaml"}
    if "gateway-admin.yaml" in texts:
        texts["gateway-admin.yaml"] = re.sub(r"\b[0-9A-Za-z]{40,64}\b", "RANDOM", texts["gateway-admin.yaml"])
    return texts


def changes(given: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """What setting ``chosen`` beside ``given`` changes: text before and after by template, chance left out."""
    before, after = _texts(json.dumps(given)), _texts(json.dumps({**given, **chosen}))
    pairs = {path: (before.get(path, ""), after.get(path, "")) for path in sorted(before.keys() | after.keys())}
    return {path: (old, new) for path, (old, new) in pairs.items() if old != new}


def knobs() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(name, values given, values set) of every case in knobs.yaml. What a value needs switched on is given."""
    defaults = {".".join(path): default for path, default, _, _ in leaves((CHART / "values.yaml").read_text())}
    for case in yaml.safe_load((TESTS / "knobs.yaml").read_text()):
        given, chosen = case.get("given", {}), case["set"]
        for path in chosen:
            parents = path.split(".")[:-1]
            for depth in range(1, len(parents) + 1):
                switch = ".".join([*parents[:depth], "enabled"])
                if switch != path and defaults.get(switch) is False:
                    given = {**given, switch: True}
        yield ", ".join(chosen), given, chosen


def difference(given: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    """The same as text, template by template."""
    said = []
    for path, (old, new) in changes(given, chosen).items():
        lines = list(difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=2))[2:]
        said += [f"# {path}", *(line for line in lines if not line.startswith("@@"))]
    return "\n".join(said)


def snapshots() -> dict[Path, str]:
    """The text of every snapshot, by file."""
    defaults = "".join(f"# {path}\n{text}\n" for path, text in sorted(_texts("{}").items()))
    cases = "\n".join(
        f"=== {json.dumps(chosen)}{f' given {json.dumps(given)}' if given else ''}\n{difference(given, chosen)}\n"
        for _, given, chosen in knobs()
    )
    folder = TESTS / "snapshots"
    return {folder / "defaults.txt": defaults, folder / "knobs.txt": cases}


def made() -> dict[Path, str]:
    """What follows from values.yaml, by file."""
    values, readme = (CHART / "values.yaml").read_text(), CHART / "README.md"
    return {
        CHART / "values.schema.json": json_schema(values),
        CHART / "files" / "known.json": json.dumps(known(), indent=2) + "\n",
        readme: _TABLE.sub(lambda _: table(values), readme.read_text()),
    }


def main(arguments: list[str]) -> int:
    stale = []
    for make in (made, snapshots):  # the schema is in force when snapshots are rendered
        for path, text in make().items():
            if not path.exists() or path.read_text() != text:
                stale.append(str(path.relative_to(ROOT)))
                if "--check" not in arguments:
                    path.parent.mkdir(exist_ok=True)
                    path.write_text(text)
    print(f"{'out of date' if '--check' in arguments else 'written'}: {', '.join(stale) or 'nothing'}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
