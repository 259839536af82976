"""Downloads what an engine will load: names on Hugging Face; what is a path is there already."""

import sys

from huggingface_hub import snapshot_download

UNUSED = ["original/*", "*.bin", "*.pth", "*.pt", "*.gguf", "*.onnx"]
"""What repositories hold beside safetensors; an engine that needs one of these downloads it itself."""

for name in sys.argv[1:]:
    if not name.startswith("/"):
        print(name, "->", snapshot_download(name, ignore_patterns=UNUSED), flush=True)
