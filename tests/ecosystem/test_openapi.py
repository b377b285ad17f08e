"""deploy/openapi.yaml: a linter finds nothing in it, and its examples are what a real server does.

Needs node, npm and python3-yaml of Debian, and npm's registry for the linter; without, it fails.
"""

import copy
import json
import shutil
import subprocess
import urllib.parse

import pytest
import yaml

from server import REPOSITORY, compact, inject, request, set_request, tool, wait_until

LINTER = "@stoplight/spectral-cli@6.15.0"
# Who runs a server is not known to a document that comes with the program.
RULES = {"extends": ["spectral:oas"], "rules": {"info-contact": "off"}}
DOCUMENT = yaml.safe_load((REPOSITORY / "deploy" / "openapi.yaml").read_text(encoding="utf-8"))
CREDENTIALS = {"userId": "d26x6zSkaPSe5gCyy",
               "authToken": "Di9OKWzdu7V2vW3lHO0oYLOOr6P2Y0n9zQlx20qn2cU"}


# ---- the linter --------------------------------------------------------------------------------


@pytest.fixture(name="lint", scope="module")
def _lint(tmp_path_factory):
    """lint(document) returns the linter's findings."""
    directory = tmp_path_factory.mktemp("spectral")
    (directory / "rules.yaml").write_text(yaml.safe_dump(RULES))
    subprocess.run([tool("npm", "npm"), "install", "--no-audit", "--no-fund", "--ignore-scripts",
                    "--prefix", directory, LINTER], check=True, capture_output=True, timeout=600)
    program = directory / "node_modules" / ".bin" / "spectral"

    def lint(document):
        path = directory / "openapi.json"
        path.write_text(json.dumps(document))
        done = subprocess.run([program, "lint", "--ruleset", directory / "rules.yaml", "--quiet",
                               "--format", "json", "--fail-severity", "hint", path],
                              capture_output=True, timeout=300, check=False)
        findings = json.loads(done.stdout or "[]")
        assert done.returncode == (1 if findings else 0), done
        return {finding["code"] for finding in findings}

    return lint


def test_the_linter_finds_nothing(lint):
    assert lint(DOCUMENT) == set()


def test_the_linter_finds_mistakes(lint):
    """An example that its schema does not allow, a reference to nothing, and a misspelled key."""
    broken = copy.deepcopy(DOCUMENT)
    operation = broken["paths"]["/api/v1/e2e.setRoomKeyID"]["post"]
    operation["responses"]["200"]["content"]["application/json"]["examples"]["set"]["value"] = {
        "success": "yes"}
    operation["responses"]["503"]["$ref"] = "#/components/responses/Nothing"
    operation["sumary"] = operation.pop("summary")
    assert lint(broken) >= {"oas3-valid-media-example", "invalid-ref", "oas3-schema"}


# ---- the examples ------------------------------------------------------------------------------


def resolve(node):
    """What a node stands for."""
    if "$ref" in node:
        node_found = DOCUMENT
        for key in node["$ref"].removeprefix("#/").split("/"):
            node_found = node_found[key]
        return node_found
    return node


class Example:
    """A request and the reply that the document promises."""

    def __init__(self, path, method, status, media_type, name, expected):
        self.path, self.method, self.name = path, method.upper(), name
        self.status, self.media_type = int(status), media_type
        self.expected = expected["value"]
        self.replay = expected.get("x-replay", {})
        self.operation = DOCUMENT["paths"][path][method]

    def __str__(self):
        return f"{self.method} {self.path} {self.status} {self.name}"

    def target(self):
        """The path, with the parameters that have an example of this name."""
        query = {parameter["name"]: parameter["examples"][self.name]["value"]
                 for parameter in self.operation.get("parameters", ())
                 if self.name in parameter["examples"]}
        return self.path + ("?" + urllib.parse.urlencode(query) if query else "")

    def body(self):
        """The request's body; None if the operation has none."""
        content = self.operation.get("requestBody", {}).get("content", {})
        if not content:
            return None
        if "body" in self.replay:
            return self.replay["body"].encode() * self.replay.get("repeat", 1)
        return compact(content["application/json"]["examples"][self.name]["value"])

    def fields(self):
        """The credentials that the operation asks for, and what the example changes."""
        fields = {}
        for requirement in self.operation.get("security", DOCUMENT["security"]):
            for scheme in requirement:
                name = DOCUMENT["components"]["securitySchemes"][scheme]["name"]
                fields[name] = CREDENTIALS[scheme]
        if self.body() is not None:
            fields["Content-Type"] = "application/json"
        fields.update(self.replay.get("headers", {}))
        return [(name, value) for name, value in fields.items() if value is not None]

    def check(self, server):
        reply = server.ask(request(self.method, self.target(), self.fields(), self.body()))
        found_type = (reply.field("Content-Type") or "").split(";")[0]
        assert (reply.status, found_type) == (self.status, self.media_type), (str(self), reply)
        if "part" in self.replay:
            assert self.expected in reply.body.decode(), (str(self), reply)
        elif self.media_type == "application/json":
            assert reply.body == compact(self.expected), (str(self), reply)
        else:
            assert reply.body == self.expected.encode(), (str(self), reply)


def examples_of(path, method):
    """The examples of an operation, in the document's order."""
    found = []
    for status, response in DOCUMENT["paths"][path][method]["responses"].items():
        for media_type, content in resolve(response).get("content", {}).items():
            for name, expected in content.get("examples", {}).items():
                found.append(Example(path, method, status, media_type, name, expected))
    return found


# A record that cannot be read back, and a server without metrics.
NOT_SHOWN = {("/api/v1/rooms.info", "503"), ("/metrics", "404")}
OPERATIONS = [(path, method) for path, item in DOCUMENT["paths"].items() for method in item]
EXAMPLES = [example for operation in OPERATIONS for example in examples_of(*operation)]


@pytest.fixture(name="example_data")
def _example_data(tmp_path):
    """A copy of the example data, where `serve` looks for it."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("users", "rooms"):
        shutil.copy(REPOSITORY / "data" / name, data)


@pytest.mark.usefixtures("example_data")
def test_the_examples(serve):
    """In order: a set that succeeds makes the reads and the refusals after it what they are."""
    server = serve(users=None, rooms=None)
    for example in EXAMPLES:
        if "disk" not in example.replay:
            example.check(server)


@pytest.mark.usefixtures("example_data")
def test_the_examples_of_a_failed_disk(serve, tmp_path):
    with open(tmp_path / "data" / "rooms", "a", encoding="utf-8") as rooms:
        rooms.write("room-0 c\nroom-1 c\nroom-2 c\n")
    server = serve(users=None, rooms=None, **inject("error=EIO:when=2+"))
    server.expected_stderr, server.expected_exit = "keys.log", 1
    fields = [("X-User-Id", CREDENTIALS["userId"]), ("X-Auth-Token", CREDENTIALS["authToken"])]
    rooms = iter(range(3))
    wait_until(lambda: server.ask(set_request(f"room-{next(rooms)}", "k", fields)).status == 503,
               "the disk to fail")
    failed = [example for example in EXAMPLES if "disk" in example.replay]
    assert len(failed) >= 2
    for example in failed:
        example.check(server)


def test_every_request_example_is_answered():
    """None stands there without the reply that belongs to it, and each status that is listed has
    an example, but for those that no example can bring about."""
    for path, method in OPERATIONS:
        operation = DOCUMENT["paths"][path][method]
        answered = {example.name for example in examples_of(path, method)}
        asked = set(operation.get("requestBody", {}).get("content", {}).get(
            "application/json", {}).get("examples", ()))
        for parameter in operation.get("parameters", ()):
            asked |= set(parameter["examples"])
        assert asked <= answered, (path, asked - answered)
        shown = {str(example.status) for example in examples_of(path, method)}
        unshown = {(path, status) for status in set(operation["responses"]) - shown - {"default"}}
        assert unshown <= NOT_SHOWN, unshown


def test_every_endpoint_is_described(serve):
    """What the server answers with a list of methods is in the document, with these methods."""
    server = serve()
    for path, item in DOCUMENT["paths"].items():
        allowed = server.ask(request("OPTIONS", path)).field("Allow")
        assert allowed, path
        methods = {name.strip().lower() for name in allowed.split(",")} - {"head", "options"}
        assert methods == set(item), path
