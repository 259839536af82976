"""A page in the browser that streams an answer at the speed of reading, with the JavaScript client.

``python serve_a_page.py http://127.0.0.1:8080/v1`` is a page for that gateway, whose ``cors_origins`` must let it in; without
an address it starts a simulated engine behind a gateway. Open what it prints; Ctrl-C ends it.
"""

import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from stream_through_gateway import service

HERE = Path(__file__).parent
CLIENT = HERE.parent / "clients" / "javascript"


class Files(SimpleHTTPRequestHandler):
    """The page, and the client's modules under ``/client/``."""

    def translate_path(self, path: str) -> str:
        self.directory, path = (str(CLIENT), path[7:]) if path.startswith("/client/") else (str(HERE / "page"), path)
        return super().translate_path(path)


def serve(url: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        print(f"http://127.0.0.1:{server.server_port}/?service={url}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    try:
        if len(sys.argv) > 1:
            serve(sys.argv[1])
        with service("--cors-origins", '["*"]') as url:
            serve(url)
    except KeyboardInterrupt:
        pass
