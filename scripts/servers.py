"""Real servers for trying and testing the loader and the connectors, without Docker: `scripts/services start`.

Each server keeps its data, log and state in its own folder below `var/services` (or `FINEGRAIN_SERVICES`, or `--folder`), listens on
loopback only, and has a throwaway user: finegrain, password finegrain. Tests use the classes, with free ports and a temporary folder
(tests/services.py). Kafka, PostgreSQL, MariaDB and Redis keep their data when they are stopped or killed; the stand-in for S3 and
Kinesis does not.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import pwd
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

PROJECT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
#: The throwaway user of every server, its password, its database and its bucket.
NAME = "finegrain"
#: Seconds after which a server that does not answer has failed, and after which one that does not stop is killed.
PATIENCE = 60.0


class ServiceError(Exception):
    """A server does not work: one sentence that names the fix."""


class Missing(ServiceError):
    """A program that is not installed. `package` is the Debian package that contains it, if any."""

    def __init__(self, what: str, package: str = "", otherwise: str = "") -> None:
        fix = f"; on Debian: apt-get install --no-install-recommends {package}" if package else ""
        super().__init__(what + fix + otherwise)
        self.package = package


def program(name: str, package: str, *folders: Path) -> str:
    """The path of a program in `folders` or PATH; raises Missing, which names Debian's package."""
    path = os.pathsep.join([*map(str, folders), os.environ.get("PATH", os.defpath), "/usr/sbin"])
    found = shutil.which(name, path=path)
    if found is None:
        raise Missing(f"{name} is not installed", package)
    return found


def free_ports(count: int) -> list[int]:
    """Free ports of the loopback interface. They are below those that systems assign to clients, so that none is taken while its
    server restarts."""
    found: set[int] = set()
    while len(found) < count:
        port = random.randrange(20000, 32000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((HOST, port))
            found.add(port)
    return list(found)


def _locked(handle: BinaryIO) -> bool:
    """Lock a file, unless it is already locked."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Server:
    """One server below `root`. Its standard output is its log file, which is locked as long as the server and its children live. So a stale
    process id, which may belong to another process by now, is detected."""

    name: ClassVar[str]
    usual_ports: ClassVar[tuple[int, ...]]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, root: Path, *, any_port: bool = False) -> None:
        self.folder = root.resolve() / self.name
        self.data = self.folder / "data"
        self.log = self.folder / "log"
        self._any_port = any_port

    # To be implemented by each kind of server.

    def check(self) -> None:
        """Raise Missing if a program is not installed."""
        raise NotImplementedError

    def prepare(self) -> list[list[str]]:
        """Write the files for a first start below `folder`. Returns the commands that initialize `data`."""
        return []

    def command(self) -> list[str]:
        """The command that runs the server in the foreground."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether it serves a client now."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Its address and credentials, as clients read them from the environment."""
        raise NotImplementedError

    def owner(self) -> dict[str, Any]:
        """The user it runs as: arguments for `subprocess`."""
        return {}

    # Common to all.

    @property
    def ports(self) -> list[int]:
        """The ports it listens on; chosen once and kept across restarts."""
        kept = self.folder / "ports"
        if not kept.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            chosen = free_ports(len(self.usual_ports)) if self._any_port else self.usual_ports
            kept.write_text(" ".join(map(str, chosen)))
        return [int(port) for port in kept.read_text().split()]

    @property
    def port(self) -> int:
        """The port for clients."""
        return self.ports[0]

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        if not self.log.exists():
            return False
        with self.log.open("ab") as log:
            return not _locked(log)

    def start(self) -> bool:
        """Start it and wait until it answers; False if it ran already. Raises ServiceError."""
        self.check()
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            if not _locked(log):
                return False
            for port in self.ports:
                with socket.socket() as probe:
                    if probe.connect_ex((HOST, port)) == 0:
                        raise ServiceError(
                            f"{self.name}: port {port} is taken by another program; stop it, or choose other ports (--any-port)"
                        )
            self._lay_out(log)
            process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
                start_new_session=True, **self.owner(),
            )  # fmt: skip
            (self.folder / "pid").write_text(str(process.pid))
        until = time.monotonic() + PATIENCE
        while not self.answers():
            if process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise ServiceError(f"{self.name} did not start; the end of {self.log}: {self._last_words()}")
            time.sleep(0.1)
        return True

    def _lay_out(self, log: BinaryIO) -> None:
        done = self.folder / "laid-out"
        if done.exists():
            return
        shutil.rmtree(self.data, ignore_errors=True)  # left by an interrupted start
        self.data.mkdir()
        owner = self.owner()
        if owner:
            os.chown(self.data, owner["user"], owner["group"])
        for command in self.prepare():
            if subprocess.run(command, stdout=log, stderr=log, cwd=self.data, check=False, **owner).returncode:
                raise ServiceError(
                    f"{self.name}: its data cannot be laid out; the end of {self.log}: {self._last_words()}"
                )
        done.touch()

    def _last_words(self) -> str:
        lines = self.log.read_text("utf-8", "replace").split("\n")
        return " / ".join([line.strip() for line in lines if line.strip()][-3:])

    def stop(self) -> bool:
        """Stop it, or kill it if it does not stop; False if it did not run."""
        return self._end(self.stop_signal) or self.kill()

    def kill(self) -> bool:
        """Kill it and its children, like a power cut; False if it did not run."""
        return self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> bool:
        if not self.running:
            return False
        number = int((self.folder / "pid").read_text())
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if how == signal.SIGKILL else os.kill)(number, how)
        until = time.monotonic() + PATIENCE
        while self.running:
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True


class Kafka(Server):
    """Apache Kafka, one node. Clients reach `port` without credentials and the second port by TLS and SASL (PLAIN)."""

    name = "kafka"
    usual_ports = (19092, 19093, 19094)

    def check(self) -> None:
        kafka_jars()
        java = program("java", "openjdk-17-jre-headless")
        said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
        version = re.search(r'version "(\d+)', said)
        if version is None or int(version[1]) < 17:
            raise Missing("java is older than 17", "openjdk-17-jre-headless")

    def prepare(self) -> list[list[str]]:
        plain, sasl, controller = self.ports
        properties = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@{HOST}:{controller}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{HOST}:{plain},SECURED://{HOST}:{sasl},CONTROLLER://{HOST}:{controller}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SECURED:SASL_SSL,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.secured.plain.sasl.jaas.config": (
                f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{NAME}="{NAME}";'
            ),
            "listener.name.secured.ssl.keystore.type": "PKCS12",
            "listener.name.secured.ssl.keystore.location": self.folder / "key.p12",
            "listener.name.secured.ssl.keystore.password": NAME,
            "log.dirs": self.data,
            "auto.create.topics.enable": "false",
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 1000,
            # One node with one copy of everything; few partitions open fast.
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 4,
            # A killed broker can only rejoin when its session has expired.
            "broker.session.timeout.ms": 2000,
            "broker.heartbeat.interval.ms": 500,
        }
        written = "".join(f"{name}={value}\n" for name, value in properties.items())
        (self.folder / "server.properties").write_text(written)
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        config = str(self.folder / "server.properties")
        store = ["-keystore", str(self.folder / "key.p12"), "-storetype", "PKCS12", "-storepass", NAME, "-alias", NAME]
        said = ["-dname", f"CN={HOST}", "-ext", f"SAN=ip:{HOST}", "-validity", "3650", "-keyalg", "EC"]
        return [
            ["keytool", "-genkeypair", *store, *said],
            ["keytool", "-exportcert", "-rfc", *store, "-file", str(self.folder / "certificate.pem")],
            [*self._java(), "kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", config],
        ]

    def command(self) -> list[str]:
        return [*self._java(), "kafka.Kafka", str(self.folder / "server.properties")]

    def _java(self) -> list[str]:
        path = os.pathsep.join(map(str, kafka_jars()))
        # Only the first compiler: a short run is mostly start-up.
        return ["java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", path]

    def answers(self) -> bool:
        return _sends(self.port, _KAFKA_METADATA, lambda answer: answer[8:12] == b"\0\0\0\1")

    def environment(self) -> dict[str, str]:
        return {
            "KAFKA_BOOTSTRAP_SERVERS": f"{HOST}:{self.port}",
            "KAFKA_SASL_BOOTSTRAP_SERVERS": f"{HOST}:{self.ports[1]}",
            "KAFKA_SASL_USERNAME": NAME,
            "KAFKA_SASL_PASSWORD": NAME,
            "KAFKA_CERTIFICATE": str(self.folder / "certificate.pem"),
        }


#: Kafka's Metadata request, version 0: length, key 3, version 0, number 1, no client id, no topics. The answer has the
#: length, the number and the count of brokers, which is 0 before the broker has joined.
_KAFKA_METADATA = bytes.fromhex("0000000e 0003 0000 00000001 ffff 00000000".replace(" ", ""))


def _sends(port: int, request: bytes, expected: Any) -> bool:
    """Whether a server answers `request` as expected."""
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1) as connection:
        connection.sendall(request)
        return bool(expected(connection.recv(1024)))
    return False


def kafka_jars() -> list[Path]:
    """Kafka's jars, as listed in scripts/kafka.jars, in a cache outside the project; downloaded if missing."""
    listed = [line.split() for line in (PROJECT / "scripts" / "kafka.jars").read_text().splitlines()]
    wanted = {tuple(artifact.split(":")): digest for artifact, digest in listed}
    [version] = {version for _, artifact, version in wanted if artifact == "kafka_2.13"}
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finegrain"
    folder = caches / f"kafka-{version}"
    jars = [folder / f"{artifact}-{version}.jar" for _, artifact, version in wanted]
    if all(jar.is_file() for jar in jars):
        return jars
    caches.mkdir(parents=True, exist_ok=True)
    with (caches / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if all(jar.is_file() for jar in jars):  # another process has downloaded them meanwhile
            return jars
        with tempfile.TemporaryDirectory(dir=caches) as fetched:
            _fetch(list(wanted), Path(fetched))
            for jar, digest in zip(jars, wanted.values(), strict=True):
                found = hashlib.sha256((Path(fetched) / jar.name).read_bytes()).hexdigest()
                if found != digest:
                    raise ServiceError(
                        f"{jar.name} is not the file that scripts/kafka.jars lists: its SHA-256 is {found}"
                    )
            folder.mkdir(exist_ok=True)
            for jar in jars:
                (Path(fetched) / jar.name).replace(jar)
    return jars


def _fetch(artifacts: list[tuple[str, ...]], into: Path) -> None:
    """Download jars with Maven, by its settings, or directly from the repository in MAVEN_REPOSITORY."""
    base = os.environ.get("MAVEN_REPOSITORY", "").rstrip("/")
    if base:
        for group, artifact, version in artifacts:
            jar = f"{artifact}-{version}.jar"
            address = f"{base}/{group.replace('.', '/')}/{artifact}/{version}/{jar}"
            try:
                with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
                    (into / jar).write_bytes(answer.read())
            except (OSError, ValueError) as error:
                raise ServiceError(f"{address}: Kafka's jar cannot be fetched: {error}") from None
        return
    maven = shutil.which("mvn")
    if maven is None:
        raise Missing("mvn is not installed", "maven", "; or name a repository of jars in MAVEN_REPOSITORY")
    dependencies = "".join(
        f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version></dependency>"
        for group, artifact, version in artifacts
    )
    (into / "pom.xml").write_text(
        "<project><modelVersion>4.0.0</modelVersion><groupId>finegrain</groupId><artifactId>kafka</artifactId>"
        f"<version>1</version><dependencies>{dependencies}</dependencies></project>"
    )
    done = subprocess.run(
        [maven, "-q", "-B", "-f", str(into / "pom.xml"), "dependency:copy-dependencies", f"-DoutputDirectory={into}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        said = [line for line in done.stdout.splitlines() if line.strip()] or ["mvn said nothing"]
        raise ServiceError(f"Kafka's jars cannot be fetched with Maven: {said[0]}")


class Postgres(Server):
    """PostgreSQL, the newest installed version. It does not run as root, so root runs it as another user."""

    name = "postgres"
    usual_ports = (15432,)
    stop_signal = signal.SIGINT  # "fast": it does not wait for clients to leave

    def check(self) -> None:
        self._program("initdb")

    def prepare(self) -> list[list[str]]:
        owner = self.owner()
        if owner and not _may_enter(self.folder, owner["user"]):
            raise ServiceError(
                f"{self.folder}: root cannot run PostgreSQL, and the user {pwd.getpwuid(owner['user']).pw_name} may not "
                "enter this folder; name another one in FINEGRAIN_SERVICES"
            )
        password = self.folder / "password"
        password.write_text(NAME)
        # fmt: off
        return [[
            self._program("initdb"), "--pgdata", str(self.data), "--username", NAME, "--pwfile", str(password),
            "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync",
        ]]
        # fmt: on

    def command(self) -> list[str]:
        # Only loopback, and no socket file: its folder may not be writable.
        options = {"listen_addresses": HOST, "port": self.port, "unix_socket_directories": "", "fsync": "off"}
        return [
            *(self._program("postgres"), "-D", str(self.data)),
            *(word for name, value in options.items() for word in ("-c", f"{name}={value}")),
        ]

    def answers(self) -> bool:
        if not _runs([self._program("pg_isready"), "-q", "-h", HOST, "-p", str(self.port)]):
            return False
        # At first, only initdb's database exists; it is fine if ours exists already.
        return _runs([self._program("createdb")], self.environment()) or _runs(
            [self._program("psql"), "-c", "select 1"], self.environment()
        )

    def environment(self) -> dict[str, str]:
        names = {"PGUSER": NAME, "PGPASSWORD": NAME, "PGDATABASE": NAME}
        return {"PGHOST": HOST, "PGPORT": str(self.port), **names}

    def owner(self) -> dict[str, Any]:
        if os.geteuid():
            return {}
        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                user = pwd.getpwnam(name)
                return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        raise ServiceError("root cannot run PostgreSQL, and there is no user postgres nor nobody")

    def _program(self, name: str) -> str:
        versions = sorted(
            Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True
        )
        return program(name, "postgresql", *versions)


def _may_enter(folder: Path, user: int) -> bool:
    """Whether a user that owns none of the folders may enter all existing ones."""
    return all(
        each.stat().st_uid == user or each.stat().st_mode & 0o001 for each in (folder, *folder.parents) if each.exists()
    )


def _runs(command: list[str], environment: dict[str, str] | None = None) -> bool:
    """Whether a command succeeds."""
    done = subprocess.run(command, env={**os.environ, **(environment or {})}, capture_output=True, check=False)
    return done.returncode == 0


class MariaDB(Server):
    """MariaDB, which is compatible with MySQL."""

    name = "mariadb"
    usual_ports = (13306,)

    def check(self) -> None:
        for name in ("mariadbd", "mariadb-install-db", "mariadb-admin"):
            program(name, "mariadb-server")

    def prepare(self) -> list[list[str]]:
        (self.folder / "init.sql").write_text(
            f"create database if not exists {NAME};\n"
            f"create user if not exists '{NAME}'@'{HOST}' identified by '{NAME}';\n"
            f"grant all on *.* to '{NAME}'@'{HOST}';\n"
        )
        return [[program("mariadb-install-db", "mariadb-server"), *self._options(), "--skip-test-db"]]

    def command(self) -> list[str]:
        # fmt: off
        return [
            program("mariadbd", "mariadb-server"), *self._options(), f"--port={self.port}", f"--bind-address={HOST}",
            "--socket=socket",  # beside the data: socket paths must be short
            f"--pid-file={self.folder / 'server.pid'}", f"--init-file={self.folder / 'init.sql'}", "--skip-name-resolve",
            "--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=2",
        ]
        # fmt: on

    def _options(self) -> list[str]:
        as_root = [] if os.geteuid() else ["--user=root"]  # it runs as root only with this option
        # Two servers on one machine would use each other's temporary files.
        return ["--no-defaults", f"--datadir={self.data}", f"--tmpdir={self.folder}", *as_root]

    def answers(self) -> bool:
        ping = [program("mariadb-admin", "mariadb-server"), "--no-defaults", f"--host={HOST}", f"--port={self.port}"]
        return _runs([*ping, f"--user={NAME}", "ping"], {"MYSQL_PWD": NAME})

    def environment(self) -> dict[str, str]:
        names = {"MYSQL_USER": NAME, "MYSQL_PWD": NAME, "MYSQL_DATABASE": NAME}
        return {"MYSQL_HOST": HOST, "MYSQL_TCP_PORT": str(self.port), **names}


class Redis(Server):
    """Redis."""

    name = "redis"
    usual_ports = (16379,)

    def check(self) -> None:
        program("redis-server", "redis-server")

    def command(self) -> list[str]:
        # fmt: off
        return [
            program("redis-server", "redis-server"), "--port", str(self.port), "--bind", HOST, "--dir", str(self.data),
            "--save", "", "--appendonly", "yes",
        ]
        # fmt: on

    def answers(self) -> bool:
        return _sends(self.port, b"PING\r\n", lambda answer: answer.startswith(b"+PONG"))

    def environment(self) -> dict[str, str]:
        return {"REDIS_URL": f"redis://{HOST}:{self.port}/0"}


class Moto(Server):
    """moto, the stand-in for S3 and Kinesis in one process. It has the bucket `finegrain`."""

    name = "moto"
    usual_ports = (15000,)

    def check(self) -> None:
        if importlib.util.find_spec("moto") is None:
            raise Missing("moto is not installed for this Python; run scripts/setup dev")

    def command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(self.port)]

    def answers(self) -> bool:
        # moto accepts any credentials, or none.
        bucket = urllib.request.Request(f"http://{HOST}:{self.port}/{NAME}", method="PUT")
        try:
            with urllib.request.urlopen(bucket, timeout=5):
                return True
        except urllib.error.HTTPError as error:
            return error.code == 409  # the bucket exists
        except OSError:
            return False

    def environment(self) -> dict[str, str]:
        address = f"http://{HOST}:{self.port}"
        keys = {"AWS_ACCESS_KEY_ID": NAME, "AWS_SECRET_ACCESS_KEY": NAME}
        region = {"AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1"}  # boto3 only reads the second
        return {"AWS_ENDPOINT_URL": address, "FINEGRAIN_S3_ENDPOINT": address, **keys, **region}


SERVERS: dict[str, type[Server]] = {
    "kafka": Kafka,
    "postgres": Postgres,
    "mariadb": MariaDB,
    "redis": Redis,
    "s3": Moto,
    "kinesis": Moto,
}

COMMANDS = {
    "start": "start and wait until it answers",
    "stop": "in good order",
    "restart": "stop, then start on the same data",
    "kill": "kill -9, like a power cut",
    "status": "what runs",
    "env": "addresses and credentials of running servers, as lines for eval",
    "packages": "Debian's packages that are missing",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 2 if a server does not work."""
    parser = argparse.ArgumentParser(
        prog="scripts/services", description="Real servers on this machine, without Docker."
    )
    parser.add_argument(
        "command", choices=COMMANDS, metavar="command", help="; ".join(map(": ".join, COMMANDS.items()))
    )
    parser.add_argument("names", nargs="*", metavar="service", help=f"of {', '.join(SERVERS)}; default: all")
    folder = os.environ.get("FINEGRAIN_SERVICES") or PROJECT / "var" / "services"
    parser.add_argument("--folder", type=Path, default=Path(folder), help="folder for data and logs (%(default)s)")
    parser.add_argument(
        "--any-port", action="store_true", help="free ports instead of the usual ones, at a first start"
    )
    given = parser.parse_args(arguments)
    wrong = [name for name in given.names if name not in SERVERS]
    if wrong:
        parser.error(f"'{wrong[0]}' is not a service; there are {', '.join(SERVERS)}")
    kinds = dict.fromkeys(SERVERS[name] for name in given.names or SERVERS)
    failed = False
    for server in (kind(given.folder, any_port=given.any_port) for kind in kinds):
        try:
            for line in _lines(given.command, server):
                print(line, flush=True)
        except ServiceError as error:
            failed = True
            print(f"error: {error}", file=sys.stderr)
    return 2 if failed else 0


def _lines(command: str, server: Server) -> Iterator[str]:
    """Run the command for a server, and report the result in a line."""
    if command in ("stop", "kill", "restart"):
        done = server.kill() if command == "kill" else server.stop()
        if command != "restart":
            yield f"{server.name}: {('killed' if command == 'kill' else 'stopped') if done else 'does not run'}"
    if command in ("start", "restart"):
        began = time.monotonic()
        started = server.start()
        took = f"started in {time.monotonic() - began:.1f} s" if started else "runs already"
        yield f"{server.name}: {took}, at {HOST}:{server.port}; data and log in {server.folder}"
    if command == "status":
        yield f"{server.name}: {f'runs at {HOST}:{server.port}' if server.running else 'does not run'}"
    if command == "packages":
        try:
            server.check()
        except Missing as missing:
            if not missing.package:
                raise
            yield missing.package
    if command == "env" and server.running:
        yield from (f"export {name}={shlex.quote(value)}" for name, value in server.environment().items())


if __name__ == "__main__":
    sys.exit(main())
