"""A Hugging Face Hub on 127.0.0.1 that keeps repositories in memory."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from urllib.parse import unquote, urlsplit


class FakeHub:
    """Answers what huggingface_hub asks to publish and to fetch files.

    Attributes:
      url: its address.
      repositories: by name, the content of every file.
    """

    def __init__(self, url: str):
        self.url, self.repositories = url, {}

    def commit_of(self, repository):
        """The id of the newest commit, which follows from the content."""
        files = sorted(self.repositories[repository].items())
        return hashlib.sha1(
            b"".join(name.encode() + content for name, content in files)
        ).hexdigest()

    def post(self, path, body):
        """The answer to a POST request, as JSON."""
        if path == "/api/repos/create":
            request = json.loads(body)
            name = f"{request.get('organization') or 'me'}/{request['name']}"
            self.repositories.setdefault(name, {})
            return {"url": f"{self.url}/{name}"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/preupload/main", path):
            files = json.loads(body)["files"]
            return {
                "files": [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in files
                ]
            }
        if found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/commit/main", path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.repositories[found[1]][line["value"]["path"]] = content
            return {
                "success": True,
                "commitUrl": f"{self.url}/{found[1]}/commit/1",
                "commitOid": self.commit_of(found[1]),
                "hookOutput": "",
            }
        return None

    def get(self, path):
        """The answer to a GET request: JSON, or the commit and the content of a file."""
        if found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/revision/\w+)?", path):
            if found[1] in self.repositories:
                files = self.repositories[found[1]]
                return {
                    "id": found[1],
                    "sha": self.commit_of(found[1]),
                    "siblings": [{"rfilename": name} for name in files],
                }
        elif found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/tree/\w+", path):
            return [
                {
                    "type": "file",
                    "path": name,
                    "size": len(content),
                    "oid": hashlib.sha1(content).hexdigest(),
                }
                for name, content in self.repositories.get(found[1], {}).items()
            ]
        elif found := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/\w+/(.+)", path):
            files = self.repositories.get(found[1], {})
            if found[2] in files:
                return self.commit_of(found[1]), files[found[2]]
        return None


@contextlib.contextmanager
def serving_hub():
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(hub.post(urlsplit(self.path).path, body))

        def do_GET(self):
            self.answer(hub.get(unquote(urlsplit(self.path).path)))

        do_HEAD = do_GET

        def answer(self, answer):
            headers, content, status = {}, b"", 200
            if answer is None:
                status, headers = 404, {"X-Error-Code": "RepoNotFound"}
            elif isinstance(answer, tuple):
                commit, content = answer
                headers = {
                    "X-Repo-Commit": commit,
                    "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
                }
            else:
                content, headers = json.dumps(answer).encode(), {"Content-Type": "application/json"}
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hub = FakeHub(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.005,))
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
