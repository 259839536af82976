"""`helm test`: one answer of each model through the gateway, as a stream."""

import json
import os
import sys
import urllib.error
import urllib.request

GATEWAY = sys.argv[1].rstrip("/")
HEADERS = {"content-type": "application/json"}
if os.environ.get("API_KEY"):
    HEADERS["authorization"] = f"Bearer {os.environ['API_KEY']}"
HINTS = {
    401: ": name a Secret with a tenant's key in test.apiKeySecret",
    403: ": the tenant of test.apiKeySecret may not call this",
    503: ": is an engine ready?",
}


def get(path: str, body: object = None) -> list[str]:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(GATEWAY + path, data, HEADERS), timeout=120) as answer:
            return [line for line in answer.read().decode().splitlines() if line]
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")[:300]
        raise SystemExit(f"{path}: HTTP {error.code}{HINTS.get(error.code, '')}\n{said}") from None
    except OSError as error:
        raise SystemExit(f"{path}: the gateway {GATEWAY} does not answer: {error}") from None


def streams(model: str) -> str | None:
    """What is wrong with an answer of ``model``; None: nothing is."""
    messages = [{"role": "user", "content": "Say hello."}]
    events = get("/v1/chat/completions", {"model": model, "stream": True, "max_tokens": 16, "messages": messages})
    chunks = [json.loads(event.removeprefix("data: ")) for event in events if event.startswith("data: {")]
    faults = [chunk["error"] for chunk in chunks if "error" in chunk]
    said = [choice["delta"] for chunk in chunks for choice in chunk.get("choices", ())]
    text = "".join(delta.get("content") or delta.get("reasoning_content") or "" for delta in said)
    if faults or events[-1:] != ["data: [DONE]"] or not text:
        return f"no proper answer from {model}: {faults or events[-1:]}"
    print(f"{model} says {text!r} in {len(chunks)} chunks")
    return None


get("/readyz")
found = [streams(model["id"]) for model in json.loads("".join(get("/v1/models")))["data"]]
if not found or any(found):
    sys.exit("; ".join(filter(None, found)) or "no models")
