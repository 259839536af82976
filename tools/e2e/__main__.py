"""``make demo-cluster``: the story for a person to watch, and its picture."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from e2e.control_plane import AbsentError, ControlPlane, binaries
from e2e.story import tell
from e2e.timeline import draw, summary


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo-cluster", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo-cluster"), metavar="DIR")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    try:
        programs = binaries()
    except AbsentError as absent:
        print(absent, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="andes-cluster-") as folder:
        print("etcd, API server, controllers, scheduler: about 15 s", flush=True)
        with ControlPlane(Path(folder) / "plane", programs) as plane:
            if not (plane.controllers and plane.cel):
                print(f"{programs} needs kube-controller-manager, kube-scheduler and CEL rules", file=sys.stderr)
                return 2
            print(f"Kubernetes {plane.version[0]}.{plane.version[1]} listens on {plane.url}; now the story", flush=True)
            outcome = tell(plane, Path(folder) / "node", lambda text: print(text, flush=True))
    (out / "timeline.svg").write_text(draw(outcome))
    (out / "summary.json").write_text(json.dumps(summary(outcome), indent=1) + "\n")
    print(
        f"{len(outcome.records)} streams, {len(outcome.cut)} cut. Picture: {out}/timeline.svg, figures: {out}/summary.json"
    )
    return 1 if outcome.cut or outcome.left else 0


if __name__ == "__main__":
    sys.exit(main())
