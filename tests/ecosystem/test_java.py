"""The documentation's Java example: its statements, in the class that they need around them.

Needs a JDK and Unirest 1 (Debian: default-jdk-headless libunirest-java-java); without, it fails.
"""

import glob
import os
import shutil
import subprocess

from server import (
    ALREADY_EXISTS,
    REPOSITORY,
    SUCCESS,
    has_ipv6,
    port_on_both_families,
    tool,
)

STATEMENTS = r"""
Unirest.setTimeouts(0, 0);
HttpResponse<String> response = Unirest.post("http://localhost:3000/api/v1/e2e.setRoomKeyID")
.header("X-User-Id", "d26x6zSkaPSe5gCyy")
.header("X-Auth-Token", "Di9OKWzdu7V2vW3lHO0oYLOOr6P2Y0n9zQlx20qn2cU")
.header("Content-Type", "application/json")
.body("{\n \"rid\": \"wCiXndNp5NqNY3uCc\",\n \"keyID\": \"my-UniQu3_ke4_Id\"\n}")
.asString();
"""

WRAPPER = """
import com.mashape.unirest.http.*;

public class Example {
    public static void main(String[] arguments) throws Exception {
        %s
        System.out.println(response.getStatus() + " " + response.getBody());
        Unirest.shutdown();
    }
}
"""

JARS = ["unirest-java", "httpclient", "httpcore", "httpcore-nio", "httpasyncclient", "httpmime",
        "com.android.json", "commons-logging", "commons-codec"]


def class_path():
    """The jars of Unirest and of what it stands on."""
    paths = [f"/usr/share/java/{name}.jar" for name in JARS]
    missing = [path for path in paths if not os.path.exists(path)]
    assert not missing, f"apt-get install libunirest-java-java (missing: {missing})"
    return ":".join(paths)


def test_java(serve, tmp_path):
    javac, java = tool("javac", "default-jdk-headless"), tool("java", "default-jdk-headless")
    data = tmp_path / "data"
    data.mkdir()
    for name in ("users", "rooms"):
        shutil.copy(REPOSITORY / "data" / name, data)
    port = port_on_both_families() if has_ipv6() else 0
    server = serve(users=None, rooms=None,
                   listen=[f"127.0.0.1:{port}"] + [f"[::1]:{port}"] * has_ipv6())
    statements = STATEMENTS.replace("localhost:3000", f"localhost:{server.address[1]}")
    (tmp_path / "Example.java").write_text(WRAPPER % statements)
    jars = class_path()
    subprocess.run([javac, "-cp", jars, "Example.java"], cwd=tmp_path, check=True, timeout=300)
    assert glob.glob(str(tmp_path / "Example.class"))
    for expected in (b"200 " + SUCCESS, b"400 " + ALREADY_EXISTS):
        result = subprocess.run([java, "-cp", f"{jars}:.", "Example"], cwd=tmp_path, timeout=300,
                                capture_output=True, check=False)
        assert (result.returncode, result.stdout.strip()) == (0, expected), result
