"""A real browser: Debian's Chromium runs scripts of a page that is not the server's.

Each call carries fields of its own, so the browser asks first (a preflight) whether the page may.
Proves that a listed page can set and read, that it can read what the server refuses, and that a
page that is not listed gets nothing, not even a set that it could not see the end of.

Needs chromium (Debian: chromium); without, it fails.
"""

import contextlib
import http.server
import json
import queue
import subprocess
import threading

import pytest

from server import (
    ALICE_FIELDS,
    ALREADY_EXISTS,
    CALL_PATH,
    INFO_PATH,
    SET_PATH,
    SUCCESS,
    UNAUTHORIZED,
    room_info,
    tool,
)

BROWSER_S = 120  # a browser's first start on a busy machine

PAGE = """<!doctype html><title>page</title><script type="module">
const server = %(server)s, fields = %(fields)s, results = [];
async function ask(path, options = {}, headers = fields) {
    try {
        const reply = await fetch(server + path, {...options, headers});
        results.push([reply.status, await reply.text()]);
    } catch (error) {
        results.push([0, error.name]);
    }
}
const post = (path, body, headers = {...fields, 'Content-Type': 'application/json'}) =>
    ask(path, {method: 'POST', body: JSON.stringify(body)}, headers);
const call = (...params) => post('%(call)s', {message: JSON.stringify(
    {msg: 'method', id: '7', method: 'e2e.setRoomKeyID', params})});
await post('%(set)s', {rid: 'one', keyID: 'key'});
await post('%(set)s', {rid: 'one', keyID: 'other'});
await ask('%(info)s?roomId=one');
await call('two', 'key');
await call('two', 'other');
await post('%(set)s', {rid: 'x'.repeat(70000)});
await post('%(set)s', {rid: 'three', keyID: 'key'}, {'Content-Type': 'text/plain'});
await fetch('/results', {method: 'POST', body: JSON.stringify(results)});
</script>"""


class Page(http.server.BaseHTTPRequestHandler):
    """Serves the page, and takes what its scripts have found out."""

    def do_GET(self):
        is_page = self.path == "/"
        self._reply(200 if is_page else 404, self.server.page if is_page else b"")

    def do_POST(self):
        self.server.results.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._reply(200, b"")

    def _reply(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def page_server():
    """The page's own server, on a port of its own: another origin."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    server.results = queue.Queue()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server, "http://127.0.0.1:%d" % server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def browse(page, url, directory):
    """Opens url in the browser and returns what its scripts report."""
    browser = subprocess.Popen(
        [tool("chromium", "chromium"), "--headless=new", "--no-sandbox", "--disable-gpu",
         "--no-first-run", "--disable-background-networking", "--disable-dev-shm-usage",
         f"--user-data-dir={directory}", "--remote-debugging-port=0", url],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={"HOME": str(directory), "PATH": "/usr/bin:/bin"},
    )
    try:
        return page.results.get(timeout=BROWSER_S)
    finally:
        browser.terminate()
        browser.wait()


def visit(server, page, url, directory):
    values = {"server": json.dumps("http://%s:%d" % server.address),
              "fields": json.dumps(dict(ALICE_FIELDS)), "set": SET_PATH, "call": CALL_PATH,
              "info": INFO_PATH}
    page.page = (PAGE % values).encode()
    return browse(page, url, directory)


@pytest.mark.parametrize("listed", ["page", "page among others", "*"])
def test_a_listed_page(serve, tmp_path, listed):
    with page_server() as (page, url):
        origins = {"page": url, "*": "*", "page among others": f"https://a.example,{url}"}[listed]
        server = serve("--cors", origins)
        one, again, info, two, two_again, too_large, stranger = visit(
            server, page, url, tmp_path / "browser")
    assert one == [200, SUCCESS.decode()]
    assert again == [400, ALREADY_EXISTS.decode()]
    assert info == [200, room_info("one", "c", "key").decode()]
    assert two[0] == 200 and json.loads(json.loads(two[1])["message"]) == {
        "msg": "result", "id": "7"}
    error = json.loads(json.loads(two_again[1])["message"])["error"]
    assert (two_again[0], error["error"]) == (400, "error-room-e2e-key-already-exists")
    assert too_large[0] == 413
    assert stranger == [401, UNAUTHORIZED.decode()]  # needs no preflight, and does not get far
    assert server.info("two").body == room_info("two", "c", "key")


@pytest.mark.parametrize("options", [(), ("--cors", "https://a.example,http://127.0.0.1")])
def test_another_page(serve, tmp_path, options):
    server = serve(*options)
    with page_server() as (page, url):
        results = visit(server, page, url, tmp_path / "browser")
    assert results == [[0, "TypeError"]] * 7
    for room in ("one", "two"):
        assert server.info(room).body == room_info(room, "c")
