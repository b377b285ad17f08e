"""The real tools that look at a server: Prometheus and its promtool, and goaccess.

Needs prometheus and goaccess of Debian; without, it fails.
"""

import contextlib
import json
import re
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request

from server import (
    ALICE_FIELDS,
    ALREADY_EXISTS,
    HEALTHZ,
    JSON_TYPE,
    SET_PATH,
    SUCCESS,
    TIMEOUT_S,
    compact,
    has_ipv6,
    info_request,
    request,
    set_request,
    tool,
    wait_until,
)

METRICS = request("GET", "/metrics")

PROMETHEUS = """
global:
  scrape_interval: 1s
  scrape_timeout: 1s
scrape_configs:
  - job_name: roomkeyd
    static_configs:
      - targets: ["127.0.0.1:{port}"]
"""


def do_something(server):
    """Two rooms set, one of them again; and an error of each kind that is at hand."""
    server.set("a", "k").is_json(200, SUCCESS)
    server.set("b", "k").is_json(200, SUCCESS)
    server.set("a", "k").is_json(400, ALREADY_EXISTS)
    assert server.set("a", "k", ()).status == 401
    assert server.info("a").status == 200
    assert server.ask(HEALTHZ).status == 200
    assert server.ask(request("GET", "/nowhere")).status == 404
    assert server.ask(b"BROKEN\r\n\r\n").status == 400


def check_metrics(text):
    """promtool has nothing to say: no error, no warning, no advice."""
    promtool = [tool("promtool", "prometheus"), "check", "metrics"]
    return subprocess.run(promtool, input=text, capture_output=True, timeout=TIMEOUT_S, check=False)


def test_promtool(server):
    for _ in range(2):
        result = check_metrics(server.ask(METRICS).body)
        assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
        if not server.log().count(b"\ta\t"):
            do_something(server)
    advised = check_metrics(b"# TYPE roomkeyd_sets counter\nroomkeyd_sets 1\n")
    assert advised.returncode != 0 and advised.stderr, "it tells good from bad"


def query(port, expression):
    """The value of an expression that has one, as Prometheus evaluates it now; None: it has none."""
    url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as reply:
            result = json.load(reply)["data"]["result"]
    except (urllib.error.URLError, ConnectionError):
        return None  # it is not up yet
    return float(result[0]["value"][1]) if result else None


@contextlib.contextmanager
def prometheus(directory, server):
    """A Prometheus that scrapes the server every second; yields its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (directory / "prometheus.yml").write_text(PROMETHEUS.format(port=server.address[1]))
    with open(directory / "prometheus.log", "wb") as log:
        process = subprocess.Popen(
            [tool("prometheus", "prometheus"), f"--config.file={directory}/prometheus.yml",
             f"--storage.tsdb.path={directory}/tsdb", f"--web.listen-address=127.0.0.1:{port}"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield port
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)


def test_prometheus(serve, tmp_path):
    server = serve()
    do_something(server)
    expected = {
        'up{job="roomkeyd"}': 1,
        'roomkeyd_sets_total{outcome="success"}': 2,
        'roomkeyd_sets_total{outcome="already_exists"}': 1,
        'roomkeyd_sets_total{outcome="unauthorized"}': 1,
        'sum(roomkeyd_http_requests_total{endpoint="e2e.setRoomKeyID"})': 4,
        'roomkeyd_http_requests_total{endpoint="other",code="404"}': 1,
        "roomkeyd_key_ids": 2,
        "roomkeyd_log_size_bytes > bool 0": 1,
        "roomkeyd_commit_batch_size_count": 2,
        "roomkeyd_commit_batch_size_sum": 2,
        'roomkeyd_commit_batch_size_bucket{le="1.000000"}': 2,
        "histogram_quantile(0.99, roomkeyd_commit_duration_seconds_bucket) > bool 0": 1,
        "histogram_quantile(1, roomkeyd_http_request_duration_seconds_bucket) > bool 0": 1,
        "roomkeyd_build_info": 1,
        "time() - process_start_time_seconds < bool 600": 1,
    }
    with prometheus(tmp_path, server) as port:
        for expression, value in expected.items():
            found = wait_until(lambda: query(port, expression), expression)  # pylint: disable=W0640
            assert found == value, (expression, found)
        server.set("c", "k").is_json(200, SUCCESS)
        wait_until(lambda: query(port, "roomkeyd_key_ids") == 3, "the next scrape")


def test_goaccess(serve, tmp_path):
    """It takes every line, and finds in them what there is."""
    path = tmp_path / "access.log"
    listen = ["127.0.0.1:0"] + ["[::1]:0"] * has_ipv6()
    server = serve("--access-log", path, listen=listen)
    do_something(server)
    agent = ("User-Agent", 'Mozilla/5.0 "quoted" \\ back\\slash')
    server.ask(request("POST", SET_PATH, (*ALICE_FIELDS, JSON_TYPE, agent, ("Referer", "http://r/")),
                       compact({"rid": "c", "keyID": "k"})))
    server.ask(request("GET", "/" + "x" * 3000))  # goaccess reads lines of 4 KiB
    server.ask(request("HEAD", "/healthz"))
    with server.client() as client:
        client.send(set_request("d", "k") * 3 + info_request("d"))
        assert [client.reply().status for _ in range(4)] == [200, 400, 400, 200]
    number = 8 + 3 + 4
    wait_until(lambda: path.read_bytes().count(b"\n") == number, "the access log")
    report = tmp_path / "report.json"
    subprocess.run(
        [tool("goaccess", "goaccess"), str(path), "--log-format=COMBINED", "--no-global-config",
         f"--invalid-requests={tmp_path}/invalid", "-o", str(report)],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=True)
    found = json.loads(report.read_text())
    general = found["general"]
    invalid = (tmp_path / "invalid").read_text() if (tmp_path / "invalid").exists() else ""
    assert (general["total_requests"], general["failed_requests"], invalid) == (number, 0, "")
    statuses = {re.match(r"\d+", item["data"])[0]: item["hits"]["count"]
                for group in found["status_codes"]["data"] for item in group["items"]}
    assert statuses == {"200": 8, "400": 4, "401": 1, "404": 2}
    assert {item["data"] for item in found["hosts"]["data"]} == {"127.0.0.1"}


def test_goaccess_where_clients_come_by_a_unix_socket(serve, tmp_path):
    """They have no address, which goaccess has to be told."""
    path = tmp_path / "access.log"
    server = serve("--access-log", path, listen=[f"unix:{tmp_path}/socket"])
    assert server.ask(HEALTHZ).status == 200
    wait_until(lambda: path.read_bytes().count(b"\n") == 1, "the access log")
    report = tmp_path / "report.json"
    subprocess.run(
        [tool("goaccess", "goaccess"), str(path), "--log-format=COMBINED", "--no-global-config",
         "--no-ip-validation", "-o", str(report)],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=True)
    general = json.loads(report.read_text())["general"]
    assert (general["total_requests"], general["failed_requests"]) == (1, 0)
