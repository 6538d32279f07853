"""Apache Superset on the published marts, with finegrain's dashboard. `scripts/bi` runs this in Superset's own environment.

What it keeps (metadata, secrets, log) is in $FINEGRAIN_HOME/bi. It reads the published file, and writes nothing beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import duckdb
import yaml

BI: Final = Path(__file__).resolve().parent
PROJECT: Final = BI.parent
USER: Final = "admin"
#: Each is in the environment or, made once, in a file.
SECRETS: Final = ("SUPERSET_SECRET_KEY", "FINEGRAIN_BI_PASSWORD")


class Trouble(Exception):
    """Something to mend first: one sentence that names the mend."""


def published() -> Path:
    """The published file, where `finegrain` puts it; where the environment names no place, the demo's will do, too."""
    home = os.environ.get("FINEGRAIN_HOME")
    if told := os.environ.get("FINEGRAIN_PUBLISHED") or (home and f"{home}/published"):
        folders = [Path(told).absolute()]
    else:
        folders = [PROJECT / "var" / "published", PROJECT / "var" / "demo" / "simulated" / "published"]
    for folder in folders:
        if (folder / "finegrain.duckdb").exists():
            return folder / "finegrain.duckdb"
    raise Trouble(
        f"nothing is published in {folders[0]}; run finegrain publish or make demo, or set FINEGRAIN_PUBLISHED"
    )


def read_secrets(path: Path) -> dict[str, str]:
    """The secrets; those that neither the environment nor the file has are made. Nobody else may read the file."""
    kept = dict(line.split("=", 1) for line in path.read_text("utf-8").splitlines()) if path.exists() else {}
    made = {name: secrets.token_urlsafe(32) for name in SECRETS if not os.environ.get(name) and name not in kept}
    if made:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w", encoding="utf-8") as file:
            file.writelines(f"{name}={value}\n" for name, value in made.items())
    return {name: os.environ.get(name) or (kept | made)[name] for name in SECRETS}


def assets(database: Path, spill: Path) -> dict[str, str]:
    """The files of bi/assets, in the format of Superset's own exports, with what is left open there filled in: where the
    published file is, the currency of its money, the time zone of its days and, for each dataset, its query (bi/queries) and the columns that this has."""
    filled = {}
    with duckdb.connect(str(database), read_only=True) as con:
        [(currency, zone)] = con.execute("select reporting_currency, shop_time_zone from dim_shop").fetchall()
    for path in sorted((BI / "assets").rglob("*.yaml")):
        name = path.relative_to(BI / "assets")
        asset: dict[str, Any] = yaml.safe_load(
            path.read_text("utf-8").replace("<currency>", str(currency)).replace("<time zone>", str(zone))
        )
        if name.parts[0] == "databases":
            asset["sqlalchemy_uri"] = f"duckdb:///{database}"
            asset["extra"]["engine_params"]["connect_args"]["config"]["temp_directory"] = str(spill)
        elif name.parts[0] == "datasets":
            asset["sql"] = (BI / "queries" / f"{path.stem}.sql").read_text("utf-8")
            with duckdb.connect(str(database), read_only=True) as con:
                columns = con.execute(f"describe {asset['sql']}").fetchall()
            asset["columns"] = [
                {"column_name": column, "type": kind, "is_dttm": kind in ("DATE", "TIMESTAMP")}
                for column, kind, *_ in columns
            ] + asset.get("columns", [])
            for column in asset["columns"]:
                column.update(groupby=True, filterable=True)
        filled[str(name)] = yaml.safe_dump(asset, sort_keys=False)
    return filled


def prepare(app: Any, home: Path, contents: dict[str, str], password: str) -> None:
    """Bring Superset's metadata up to date: its tables and roles, the one user, and the dashboard where it is another
    than the one that was brought in last."""
    from flask_migrate import upgrade
    from superset.commands.importers.v1.assets import ImportAssetsCommand
    from superset.extensions import appbuilder, db, security_manager
    from superset.utils.core import override_user

    mark = home / "imported"
    wanted = hashlib.sha256(repr((importlib.metadata.version("apache-superset"), contents)).encode()).hexdigest()
    is_new = not mark.exists() or mark.read_text("utf-8") != wanted
    with app.app_context():
        if is_new:
            upgrade(directory=str(Path(app.root_path) / "migrations"))
            appbuilder.add_permissions(update_perms=True)
            security_manager.sync_role_definitions()
        user = security_manager.find_user(username=USER)
        if user is None:
            role = security_manager.find_role("Admin")
            user = security_manager.add_user(USER, "finegrain", USER, f"{USER}@localhost", role, password)
        else:
            security_manager.reset_password(user.id, password)
        if is_new:
            with override_user(user):
                ImportAssetsCommand(contents).run()
            mark.write_text(wanted, "utf-8")
        db.session.remove()
        db.engine.dispose()  # the worker is a fork, and opens its own connections


def serve(app: Any, address: str, port: int, ready: Callable[[], None]) -> None:
    """Serve until stopped: one worker, whose threads ask DuckDB side by side."""
    from gunicorn.app.base import BaseApplication

    class Server(BaseApplication):
        def load_config(self) -> None:
            for name, value in {
                "bind": f"{address}:{port}",
                "worker_class": "gthread",
                "threads": 8,
                "timeout": 300,
                "control_socket_disable": True,
                "when_ready": lambda _: ready(),
            }.items():
                self.cfg.set(name, value)

        def load(self) -> Any:
            return app

    Server().run()


def run(address: str, port: int) -> None:
    started = time.monotonic()
    database = published()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise Trouble(f"cannot listen on {address}:{port} ({error.strerror}); name another: --port") from error
    home = Path(os.environ.get("FINEGRAIN_HOME") or PROJECT / "var").absolute() / "bi"
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    told = "the environment" if os.environ.get("FINEGRAIN_BI_PASSWORD") else home / "secrets"
    os.environ.update(read_secrets(home / "secrets"))
    os.environ.update(SUPERSET_HOME=str(home), SUPERSET_CONFIG_PATH=str(BI / "superset_config.py"))
    if not (home / "superset.db").exists():
        (home / "imported").unlink(missing_ok=True)

    # The terminal gets what concerns its reader; what Superset has to say goes into a log.
    terminal = os.fdopen(os.dup(1), "w", encoding="utf-8")
    log = os.open(home / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    print(f"starting Superset on {database}; its log is {home / 'log'}", file=terminal, flush=True)
    try:
        from superset.app import create_app

        app = create_app()
        prepare(app, home, assets(database, home / ".spill"), os.environ["FINEGRAIN_BI_PASSWORD"])
    except Exception as error:
        print(f"error: Superset did not start: {error.__cause__ or error}; see the log", file=terminal, flush=True)
        raise

    def ready() -> None:
        print(
            f"ready after {time.monotonic() - started:.0f} s: http://{address}:{port}/superset/dashboard/finegrain/\n"
            f"user {USER}, password FINEGRAIN_BI_PASSWORD in {told}; Ctrl+C stops",
            file=terminal,
            flush=True,
        )

    serve(app, address, port, ready)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bi", description="Apache Superset on the published marts.")
    parser.add_argument("--address", default="127.0.0.1", help="listen here; 0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=8088)
    arguments = parser.parse_args()
    try:
        run(arguments.address, arguments.port)
    except Trouble as trouble:
        print(f"error: {trouble}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
