"""A server on the loopback interface that speaks the Hub's HTTP API as huggingface_hub uses it.

It keeps models in memory: repositories, branches, commits, and large files by their SHA-256. One token
may write, none may read, any other is refused. Each request is logged as "METHOD path". `break_uploads`
makes large uploads fail as they do in life: the connection drops in the middle, and the link that the
client then tries again has expired.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".bin", ".pt", ".pth", ".png")


class LoopbackHub:
    def __init__(self, token):
        self.token = token
        self.repos = {}
        self.objects = {}
        self.requests = []
        self.uploads = []
        self.smallest_broken = None
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self})
        )
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def break_uploads(self, smallest):
        """Uploads of `smallest` bytes and more fail from now on; None ends it."""
        self.smallest_broken = smallest
        self.dropped = set()

    def files(self, repo_id, revision="main"):
        """Path -> content of a branch or commit."""
        repo = self.repos[repo_id]
        commit = repo["branches"].get(revision, revision)
        return {
            path: self.objects[what["oid"]] if "oid" in what else what["content"]
            for path, what in repo["commits"][commit].items()
        }

    def commit(self, repo_id, branch, lines):
        repo = self.repos[repo_id]
        tree = dict(repo["commits"].get(repo["branches"].get(branch), {}))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = {"content": base64.b64decode(value["content"])}
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    raise KeyError(f"{value['path']} was never uploaded")
                tree[value["path"]] = {"oid": value["oid"]}
            elif line["key"] == "deletedFile":
                tree.pop(value["path"], None)
        sha = hashlib.sha1(f"{repo_id}{branch}{len(repo['commits'])}".encode()).hexdigest()
        repo["commits"][sha] = tree
        repo["branches"][branch] = sha
        return sha


class Handler(BaseHTTPRequestHandler):
    hub = None
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0)) or self.chunked()

    def chunked(self):
        found = b""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return found
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def answer(self, status, content=b"", **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers.setdefault("Content-Type", "application/json")
        self.send_response(status)
        headers.setdefault("Content-Length", str(len(content)))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def missing(self, code, message):
        self.answer(404, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def may(self, write):
        given = self.headers.get("Authorization")
        if given == f"Bearer {self.hub.token}" or (given is None and not write):
            return True
        self.body()  # what is left unread would be taken for the connection's next request
        message = "Invalid credentials in Authorization header" if given else "Unauthorized"
        self.answer(401, {"error": message}, X_Error_Message=message)
        return False

    def handle_request(self):
        path = unquote(urlsplit(self.path).path)
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {path}")
        if self.command == "PUT":
            return self.put_object(path.rpartition("/")[2])
        if not self.may(write=self.command == "POST" and path != "/api/validate-yaml"):
            return None
        for pattern, action in ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                return action(self, *match.groups())
        return self.missing("EntryNotFound", f"no such call: {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = handle_request  # noqa: N815

    def put_object(self, oid):
        size = int(self.headers["Content-Length"])
        hub = self.hub
        if hub.smallest_broken is not None and size >= hub.smallest_broken:
            if oid not in hub.dropped:
                hub.dropped.add(oid)
                self.rfile.read(size // 2)
                self.close_connection = True
                self.connection.shutdown(2)
                return
            self.rfile.read(size)
            self.answer(403, {"error": "Request has expired"})
            return
        content = self.rfile.read(size)
        if hashlib.sha256(content).hexdigest() != oid:
            self.answer(400, {"error": "content does not match its SHA-256"})
            return
        hub.objects[oid] = content
        hub.uploads.append(oid)
        self.answer(200)

    def create(self):
        asked = json.loads(self.body())
        repo_id = f"{asked.get('organization') or 'ann'}/{asked['name']}"
        known = repo_id in self.hub.repos
        repo = self.hub.repos.setdefault(repo_id, {"commits": {}, "branches": {}})
        if not known:
            repo["private"] = asked.get("private", False)
            self.hub.commit(repo_id, "main", [])
        url = {"url": f"{self.hub.url}/{repo_id}"}
        self.answer(409 if known else 200, url)

    def validate_yaml(self):
        asked = json.loads(self.body())
        ok = asked["content"].startswith("---\n")
        errors = [] if ok else [{"message": "no metadata"}]
        self.answer(200 if ok else 400, {"errors": errors, "warnings": []})

    def whoami(self):
        self.answer(200, {"name": "ann", "type": "user", "orgs": []})

    def preupload(self, repo_id, revision):
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body())["files"]
        ]
        if self.commit_of(repo_id, revision):
            self.answer(200, {"files": files})

    def batch(self, repo_id):
        objects = []
        for item in json.loads(self.body())["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.objects:
                answer["actions"] = {
                    "upload": {"href": f"{self.hub.url}/objects/{item['oid']}"},
                    "verify": {"href": f"{self.hub.url}/{repo_id}.git/info/lfs/verify"},
                }
            objects.append(answer)
        self.answer(200, {"transfer": "basic", "objects": objects})

    def verify(self, repo_id):
        asked = json.loads(self.body())
        found = self.hub.objects.get(asked["oid"])
        self.answer(200 if found is not None and len(found) == asked["size"] else 404, {})

    def post_commit(self, repo_id, branch):
        lines = [json.loads(line) for line in self.body().splitlines() if line]
        with self.hub.lock:
            sha = self.hub.commit(repo_id, branch, lines)
        url = f"{self.hub.url}/{repo_id}/commit/{sha}"
        self.answer(200, {"success": True, "commitOid": sha, "commitUrl": url})

    def branch(self, repo_id, name):
        self.body()
        branches = self.hub.repos[repo_id]["branches"]
        known = name in branches
        branches.setdefault(name, branches["main"])
        self.answer(409 if known else 200, {})

    def commit_of(self, repo_id, revision):
        repo = self.hub.repos.get(repo_id)
        if repo is None:
            self.missing("RepoNotFound", "Repository not found")
            return None
        sha = repo["branches"].get(revision or "main", revision)
        if sha not in repo["commits"]:
            self.missing("RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return sha

    def info(self, repo_id, revision=None):
        if sha := self.commit_of(repo_id, revision):
            siblings = [{"rfilename": path} for path in sorted(self.hub.files(repo_id, sha))]
            self.answer(200, {"id": repo_id, "modelId": repo_id, "sha": sha, "siblings": siblings})

    def tree(self, repo_id, revision):
        if not (sha := self.commit_of(repo_id, revision)):
            return
        rows = []
        for path, content in sorted(self.hub.files(repo_id, sha).items()):
            what = self.hub.repos[repo_id]["commits"][sha][path]
            row = {"type": "file", "path": path, "size": len(content)}
            row["oid"] = hashlib.sha1(content).hexdigest()
            if "oid" in what:
                row["lfs"] = {"oid": what["oid"], "size": len(content), "pointerSize": 130}
            rows.append(row)
        if parse_qs(urlsplit(self.path).query).get("recursive") != ["true"]:
            rows = [row for row in rows if "/" not in row["path"]]
        self.answer(200, rows)

    def resolve(self, repo_id, revision, path):
        if not (sha := self.commit_of(repo_id, revision)):
            return
        content = self.hub.files(repo_id, sha).get(path)
        if content is None:
            self.missing("EntryNotFound", f"{path} not found")
            return
        etag = self.hub.repos[repo_id]["commits"][sha][path].get("oid")
        headers = {"X_Repo_Commit": sha, "ETag": f'"{etag or hashlib.sha1(content).hexdigest()}"'}
        if etag:
            headers |= {"X_Linked_ETag": f'"{etag}"', "X_Linked_Size": str(len(content))}
        self.answer(200, content, Content_Length=str(len(content)), **headers)


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.validate_yaml),
    (r"GET /api/whoami-v2", Handler.whoami),
    (rf"POST /api/models/{REPO}/preupload/([^/]+)", Handler.preupload),
    (rf"POST /{REPO}\.git/info/lfs/objects/batch", Handler.batch),
    (rf"POST /{REPO}\.git/info/lfs/verify", Handler.verify),
    (rf"POST /api/models/{REPO}/commit/([^/]+)", Handler.post_commit),
    (rf"POST /api/models/{REPO}/branch/([^/]+)", Handler.branch),
    (rf"GET /api/models/{REPO}", Handler.info),
    (rf"GET /api/models/{REPO}/revision/([^/]+)", Handler.info),
    (rf"GET /api/models/{REPO}/tree/([^/]+)", Handler.tree),
    (rf"(?:GET|HEAD) /{REPO}/resolve/([^/]+)/(.+)", Handler.resolve),
]
