"""`helm test`: one answer through the gateway, as a stream, with what its reader got."""

import json
import os
import sys
import urllib.request

GATEWAY = sys.argv[1].rstrip("/")
HEADERS = {"content-type": "application/json"}
if os.environ.get("API_KEY"):
    HEADERS["authorization"] = f"Bearer {os.environ['API_KEY']}"


def get(path: str, body: object = None) -> list[str]:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(GATEWAY + path, data, HEADERS), timeout=120) as answer:
        return [line for line in answer.read().decode().splitlines() if line]


get("/readyz")
model = json.loads("".join(get("/v1/models")))["data"][0]["id"]
events = get(
    "/v1/chat/completions",
    {"model": model, "stream": True, "max_tokens": 16, "messages": [{"role": "user", "content": "Say hello."}]},
)
chunks = [json.loads(event.removeprefix("data: ")) for event in events if event.startswith("data: {")]
faults = [chunk["error"] for chunk in chunks if "error" in chunk]
text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk.get("choices", ()))
if faults or events[-1] != "data: [DONE]" or not text:
    sys.exit(f"no proper answer from {model}: {faults or events[-1:]}")
print(f"{model} says {text!r} in {len(chunks)} chunks")
