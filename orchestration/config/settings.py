"""Settings: `Environment` holds every environment variable that finegrain reads, checked; `Settings` holds the paths that follow from them."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, date, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from orchestration.config import project
from orchestration.errors import HIDDEN, FinegrainError, without_secrets

PROJECT, PACKAGE, variable = project.PROJECT, project.PACKAGE, project.variable
#: The file that marks a folder as a simulated shop.
SIMULATION: Final = "simulation.json"
#: DuckDB does not start with less.
LEAST_MEMORY: Final = 64 * 10**6
_UNITS: Final = {
    unit + suffix: factor**power
    for power, unit in enumerate("kmgt", 1)
    for suffix, factor in (("", 1000), ("b", 1000), ("ib", 1024))
}


@dataclass(frozen=True)
class Settings:
    """Resolved paths: `lake_catalog` (DuckLake's SQLite file), `lake_data` (its Parquet folder), `warehouse` (the build's private DuckDB
    file), `published` (what readers open), `extensions` (DuckDB extensions).

    The lake may be remote. Then its location is a string: `postgres:…` for the catalogue (a libpq connection string or URL, never with a
    password) and `s3://…` for the files."""

    home: Path
    lake_catalog: Path | str
    lake_data: Path | str
    warehouse: Path
    published: Path
    extensions: Path

    @classmethod
    def below(cls, home: Path, extensions: Path | None = None) -> Settings:
        """All paths below one folder, ignoring the environment."""
        return cls(
            home=home,
            lake_catalog=home / "lake" / "catalog.sqlite",
            lake_data=home / "lake" / "data",
            warehouse=home / "warehouse.duckdb",
            published=home / "published",
            extensions=extensions or home / "extensions",
        )

    def environment(self) -> dict[str, str]:
        """The environment variables from which `settings` would read these paths."""
        return {_variable(field.name): str(getattr(self, field.name)) for field in fields(self)}


def _variable(name: str) -> str:
    return f"FINEGRAIN_{name.upper()}"


#: What a variable may hold instead of a path.
_ELSEWHERE: Final = {"FINEGRAIN_LAKE_CATALOG": ", or postgres:…", "FINEGRAIN_LAKE_DATA": ", or s3://bucket/folder"}
MAIL_ADDRESS: Final = re.compile(r"""[^\s@<>,;:"()\[\]\\]+@[^\s@<>,;:"()\[\]\\]+""", re.ASCII)


def _setting(variable: str | AliasChoices, group: str, purpose: str, default: Any = None, unset: str = "") -> Any:
    """A field of `Environment`. `purpose` is Markdown, with links as from docs/reference; `unset` says what holds without the variable, where
    the default does not."""
    return Field(
        default, validation_alias=variable, description=purpose, json_schema_extra={"group": group, "unset": unset}
    )


_PLACES: Final = "Places"
_BUILDS: Final = "Builds"
_STREAMS: Final = "Streams"
_STORE: Final = "Feature store"
_DAGSTER: Final = "Dagster and alerts"
#: Names with commas between them in the environment.
_Names = Annotated[tuple[str, ...], NoDecode]


class Environment(BaseSettings):
    """Every environment variable that finegrain reads. Values that a mapping names (`${NAME}`) are not among them."""

    model_config = SettingsConfigDict(
        case_sensitive=True, env_ignore_empty=True, extra="ignore", frozen=True, validate_default=False
    )

    home: Path | None = _setting(
        "FINEGRAIN_HOME",
        _PLACES,
        "the folder below which everything else is by default ([what is in it](home.md))",
        unset="`var/` in the project; of a wheel without a project, in the current folder",
    )
    lake_catalog: Path | str | None = _setting(
        "FINEGRAIN_LAKE_CATALOG",
        _PLACES,
        "DuckLake's catalogue; many processes may use it at once. Or [in PostgreSQL](../how-to/share-the-lake.md)",
        unset="`$FINEGRAIN_HOME/lake/catalog.sqlite`",
    )
    lake_data: Path | str | None = _setting(
        "FINEGRAIN_LAKE_DATA",
        _PLACES,
        "the lake's Parquet files: raw rows, append-only, and records of those that [sources deleted](../explanation/cleaning.md#deleted-rows). "
        "Or [in an object store](../how-to/share-the-lake.md)",
        unset="`$FINEGRAIN_HOME/lake/data`",
    )
    warehouse: Path | None = _setting(
        "FINEGRAIN_WAREHOUSE",
        _PLACES,
        "the build's private file; DuckDB lets one process in",
        unset="`$FINEGRAIN_HOME/warehouse.duckdb`",
    )
    published: Path | None = _setting(
        "FINEGRAIN_PUBLISHED", _PLACES, "what readers open", unset="`$FINEGRAIN_HOME/published`"
    )
    extensions: Path | None = _setting(
        "FINEGRAIN_EXTENSIONS",
        _PLACES,
        "DuckDB's extensions, unpacked from their wheels",
        unset="`$FINEGRAIN_HOME/extensions`",
    )
    project: str | None = _setting(
        "FINEGRAIN_PROJECT",
        _PLACES,
        "the dbt project that runs: [a shop's](../how-to/start-a-shop.md), or finegrain's",
        unset="the nearest folder with a `dbt_project.yml`, from the current one upwards; else finegrain's own",
    )
    package: str | None = _setting(
        "FINEGRAIN_PACKAGE",
        _PLACES,
        "finegrain's own dbt project, for bare `dbt deps` in a shop's project",
        unset="set by `finegrain`",
    )
    offline: bool = _setting(
        "FINEGRAIN_OFFLINE",
        _PLACES,
        "`1`: do not ask dbt's package hub; use the packages that finegrain holds",
        False,
        unset="0",
    )
    temporary: str | None = _setting("TMPDIR", _PLACES, "temporary files", unset="the system's folder for them")
    umask: int = _setting(
        "FINEGRAIN_UMASK",
        _PLACES,
        "the permissions that others do not get on files that finegrain makes: 077 none at all, 027 lets their group read "
        "([security](../how-to/secure.md))",
        0o077,
        unset="077",
    )
    privacy_key: SecretStr | None = _setting(
        "FINEGRAIN_PRIVACY_KEY",
        _PLACES,
        "the key of hashes of personal data: 32 characters or more, as from `openssl rand -hex 32`; the same on all machines that share a lake",
        unset="`$FINEGRAIN_HOME/privacy.key`, which is made when it is first needed",
    )
    s3_endpoint: str | None = _setting(
        "FINEGRAIN_S3_ENDPOINT", _PLACES, "`https://host:port` of an S3-compatible store", unset="AWS"
    )
    aws_access_key_id: SecretStr | None = _setting(
        "AWS_ACCESS_KEY_ID", _PLACES, "credentials of [an object store](../how-to/share-the-lake.md)"
    )
    aws_secret_access_key: SecretStr | None = _setting("AWS_SECRET_ACCESS_KEY", _PLACES, "the key's secret")
    aws_session_token: SecretStr | None = _setting("AWS_SESSION_TOKEN", _PLACES, "the token of temporary credentials")
    aws_region: str | None = _setting(
        AliasChoices("AWS_REGION", "AWS_DEFAULT_REGION"), _PLACES, "the region of the object store and of Kinesis"
    )

    threads: int = _setting(
        "FINEGRAIN_THREADS",
        _BUILDS,
        "models that dbt builds at once; each uses all cores and, alone, all the memory",
        1,
    )
    memory: str = _setting(
        "FINEGRAIN_MEMORY",
        _BUILDS,
        "what DuckDB may use in a build, and in a publish. The process takes about 400 MB more, and what does not fit is spilled to disk",
        "3GB",  # profiles.yml repeats it
    )
    as_of: datetime | None = _setting(
        "FINEGRAIN_AS_OF",
        _BUILDS,
        "the time as of which features are built (ISO 8601)",
        unset="the last event's arrival, or later where more than 1 % of the events wait for customers, products or orders with a later date "
        "([why](../decisions/0015-the-moment-of-a-build.md))",
    )
    snapshot: str | None = _setting(
        "FINEGRAIN_SNAPSHOT", _BUILDS, "the lake snapshot to build from", unset="the newest"
    )
    full_audit: bool = _setting(
        "FINEGRAIN_FULL_AUDIT",
        _BUILDS,
        "`1`: run all tests on all rows, also those that passed on the same inputs (`finegrain build --full-audit`)",
        False,
        unset="0",
    )

    openlineage: str | None = _setting(
        AliasChoices("FINEGRAIN_OPENLINEAGE", "OPENLINEAGE_URL"),
        _BUILDS,
        "where builds send their [lineage](../how-to/lineage.md): a server, `https://host:port`, or a file to which events are appended",
    )
    openlineage_endpoint: str = _setting(
        "OPENLINEAGE_ENDPOINT", _BUILDS, "the path of that server to which events are sent", "api/v1/lineage"
    )
    openlineage_api_key: SecretStr | None = _setting("OPENLINEAGE_API_KEY", _BUILDS, "the key of that server")
    openlineage_namespace: str = _setting(
        "OPENLINEAGE_NAMESPACE", _BUILDS, "the namespace of the jobs in those events", "finegrain"
    )

    # A loader's client queue and two batches come on top.
    stream_memory: str = _setting(
        "FINEGRAIN_STREAM_MEMORY",
        _STREAMS,
        "how much of a loader's memory DuckDB may use ([size](../how-to/run-a-loader.md#set-its-size))",
        "192MB",
    )

    online_store: str | None = _setting(
        "FINEGRAIN_ONLINE_STORE",
        _STORE,
        "where the newest feature vectors are served from: `redis://host:port/database`, or `rediss://` over TLS "
        "([serve features](../how-to/serve-features.md))",
        unset="SQLite, `$FINEGRAIN_HOME/store/online.sqlite`",
    )
    online_store_password: SecretStr | None = _setting(
        "FINEGRAIN_ONLINE_STORE_PASSWORD", _STORE, "the password of Redis, or of the user that its address names"
    )

    shop: str | None = _setting(
        "FINEGRAIN_SHOP", _DAGSTER, "a mapping file, or a folder of them: `--shop` of `finegrain dagster`"
    )
    data: str | None = _setting(
        "FINEGRAIN_DATA", _DAGSTER, "the base folder of the mappings' relative paths: `--data` of `finegrain dagster`"
    )
    build_rows: float = _setting(
        "FINEGRAIN_BUILD_ROWS", _DAGSTER, "how many new rows start a build", 10_000, unset="10,000"
    )
    build_minutes: float = _setting(
        "FINEGRAIN_BUILD_MINUTES", _DAGSTER, "after how long a wait of the first new row a build starts", 15, unset="15"
    )
    history_start: date = _setting(
        "FINEGRAIN_HISTORY_START", _DAGSTER, "the first day that can be backfilled", date(2025, 1, 1)
    )
    loaders: _Names = _setting(
        "FINEGRAIN_LOADERS", _DAGSTER, "metrics addresses of loaders to watch, separated by commas", ()
    )
    automation: bool = _setting(
        "FINEGRAIN_AUTOMATION",
        _DAGSTER,
        "`off`: schedules and sensors stay stopped until somebody starts them",
        True,
        unset="on",
    )
    dagster_home: Path | None = _setting(
        "DAGSTER_HOME", _DAGSTER, "where Dagster keeps its files", unset="`$FINEGRAIN_HOME/dagster`"
    )
    dagster_storage: SecretStr | None = _setting(
        "FINEGRAIN_DAGSTER_STORAGE",
        _DAGSTER,
        "a PostgreSQL database for Dagster's runs and events",
        unset="SQLite below `DAGSTER_HOME`",
    )
    dagster_url: str | None = _setting(
        "FINEGRAIN_DAGSTER_URL",
        _DAGSTER,
        "the address in links; its host name may be asked for",
        unset="the page's own address",
    )
    dagster_hosts: _Names = _setting(
        "FINEGRAIN_DAGSTER_HOSTS", _DAGSTER, "further host names, separated by commas (`--allow-host`)", ()
    )
    alerts: str | None = _setting(
        "FINEGRAIN_ALERTS",
        _DAGSTER,
        "a YAML file of thresholds and of mail addresses",
        unset="[orchestration/quality/alerts.yml](../../orchestration/quality/alerts.yml)",
    )
    alert_webhook: SecretStr | None = _setting(
        "FINEGRAIN_ALERT_WEBHOOK", _DAGSTER, "a webhook in Slack's format (a secret)"
    )
    alert_smtp: str | None = _setting("FINEGRAIN_ALERT_SMTP", _DAGSTER, "the mail server: `smtps://user@host:port`")
    alert_smtp_password: SecretStr | None = _setting(
        "FINEGRAIN_ALERT_SMTP_PASSWORD", _DAGSTER, "the password of the mail server's user"
    )
    alert_from: str | None = _setting("FINEGRAIN_ALERT_FROM", _DAGSTER, "the mail address that alerts come from")

    @classmethod
    def read(cls) -> Environment:
        """The environment as it is now, so that one process can work on several homes in turn. An empty variable counts as unset. Raises
        FinegrainError, with one line for each invalid variable."""
        return _read(tuple(os.environ.get(each) for name in cls.model_fields for each in variables(name)))

    @model_validator(mode="before")
    @classmethod
    def _blank_is_unset(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in given.items() if not (isinstance(value, str) and not value.strip())}

    @field_validator("home", "lake_catalog", "lake_data", "warehouse", "published", "extensions", mode="before")
    @classmethod
    def _location(cls, value: Any, info: ValidationInfo) -> Any:
        return _location(variables(info.field_name)[0], value) if isinstance(value, str) else value

    @field_validator("memory", "stream_memory", mode="before")
    @classmethod
    def _memory(cls, value: str, info: ValidationInfo) -> str:
        if memory_bytes(value) < LEAST_MEMORY:
            raise ValueError(
                f"{variables(info.field_name)[0]} is '{value.strip()}', which is not a usable amount of memory; "
                "write a number with a unit, as in 3GB, 500MB or 2GiB (64MB or more)"
            )
        return value.strip()

    @field_validator("threads", mode="before")
    @classmethod
    def _threads(cls, value: str) -> int:
        text = value.strip()
        if not re.fullmatch("[0-9]{1,3}", text) or not 1 <= int(text) <= 256:
            raise ValueError(f"FINEGRAIN_THREADS is '{text}'; write a whole number from 1 to 256")
        return int(text)

    @field_validator("umask", mode="before")
    @classmethod
    def _umask(cls, value: str) -> int:
        text = value.strip()
        if not re.fullmatch("0?0?[0-7]{2}", text):
            raise ValueError(
                f"FINEGRAIN_UMASK is '{text}'; write 077 (only the owner), 027 (the group can read) or 022 (everyone can read)"
            )
        return int(text, 8)

    @field_validator("s3_endpoint", mode="before")
    @classmethod
    def _s3_endpoint(cls, value: str) -> str:
        if not is_server(value.strip()):
            raise ValueError("FINEGRAIN_S3_ENDPOINT is not a server address; write it like https://host:port")
        return value.strip()

    @field_validator("openlineage", mode="before")
    @classmethod
    def _openlineage(cls, value: str) -> str:
        text = value.strip()
        if "://" in text and not is_server(text):
            raise ValueError(
                "FINEGRAIN_OPENLINEAGE (OPENLINEAGE_URL) is neither a server, as in https://host:port, nor a file; a key goes into OPENLINEAGE_API_KEY"
            )
        return text

    @field_validator("online_store", mode="before")
    @classmethod
    def _online_store(cls, value: str) -> str:
        text = value.strip()
        parts = address_parts(text)
        if (parts is not None and parts.password is not None) or re.match("[^:]*:/*[^/@]*:[^/]*@", text):
            raise ValueError(
                "FINEGRAIN_ONLINE_STORE holds a password; leave it out, and set it in FINEGRAIN_ONLINE_STORE_PASSWORD"
            )
        is_redis = parts is not None and parts.scheme in ("redis", "rediss") and not parts.query and not parts.fragment
        if parts is None or not is_redis or not re.fullmatch("(/[0-9]{0,4})?", parts.path):
            raise ValueError("FINEGRAIN_ONLINE_STORE is not an address of Redis; write redis://host:port/0")
        return text

    @field_validator("as_of", mode="before")
    @classmethod
    def _as_of(cls, value: str) -> datetime:
        """As naive UTC; a time without an offset is UTC."""
        text = value.strip()
        try:
            moment = datetime.fromisoformat(text)
            return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
        except (ValueError, OverflowError):
            raise ValueError(
                f"FINEGRAIN_AS_OF (--as-of) is {text!r}, which is not an ISO 8601 time; write it like 2024-03-31T00:00:00Z"
            ) from None

    @field_validator("full_audit", "offline", "automation", mode="before")
    @classmethod
    def _switch(cls, value: str, info: ValidationInfo) -> bool:
        no, yes = ("off", "on") if info.field_name == "automation" else ("0", "1")
        if value.strip() not in (no, yes):
            raise ValueError(f"{variables(info.field_name)[0]} is {value!r}; write {yes} or {no}")
        return value.strip() == yes

    @field_validator("build_rows", "build_minutes", mode="before")
    @classmethod
    def _number(cls, value: str, info: ValidationInfo) -> float:
        try:
            number = float(value)
        except ValueError:
            number = -1
        if not 0 <= number < 1e12:
            raise ValueError(f"{variables(info.field_name)[0]} is {value!r}; write a number that is not negative")
        return number

    @field_validator("history_start", mode="before")
    @classmethod
    def _day(cls, value: str) -> date:
        try:
            return date.fromisoformat(value.strip())
        except ValueError:
            raise ValueError(f"FINEGRAIN_HISTORY_START is {value!r}; write a day like 2025-01-01") from None

    @field_validator("loaders", "dagster_hosts", mode="before")
    @classmethod
    def _names(cls, value: str) -> tuple[str, ...]:
        return tuple(each.strip() for each in value.split(",") if each.strip())

    @field_validator("dagster_url", mode="before")
    @classmethod
    def _dagster_url(cls, value: str) -> str:
        if not is_server(value.strip()):
            raise ValueError("FINEGRAIN_DAGSTER_URL is not an address; write it like https://dagster.shop.com")
        return value.strip()

    @field_validator("alert_webhook", mode="before")
    @classmethod
    def _alert_webhook(cls, value: str) -> str:
        parts = address_parts(value)
        if parts is None or parts.scheme not in ("http", "https") or parts.username is not None:
            raise ValueError("FINEGRAIN_ALERT_WEBHOOK is not a webhook URL; copy it from the chat: https://host/…")
        return value

    @field_validator("alert_smtp", mode="before")
    @classmethod
    def _alert_smtp(cls, value: str) -> str:
        parts = address_parts(value)
        # A password that contains a / is parsed as a path.
        if (parts is not None and parts.password is not None) or re.match("[^:]*:/*[^/:@]*:.*@", value):
            raise ValueError(
                "FINEGRAIN_ALERT_SMTP holds a password; leave it out, and set it in FINEGRAIN_ALERT_SMTP_PASSWORD"
            )
        is_mail = parts is not None and parts.scheme in ("smtp", "smtps")
        if parts is None or not is_mail or parts.path.strip("/") or parts.query or parts.fragment:
            raise ValueError(
                "FINEGRAIN_ALERT_SMTP is not a mail server; write smtp://host:port or smtps://user@host:port"
            )
        return value

    @field_validator("alert_from", mode="before")
    @classmethod
    def _alert_from(cls, value: str) -> str:
        if not MAIL_ADDRESS.fullmatch(value):
            raise ValueError(
                "FINEGRAIN_ALERT_FROM is not a mail address; write the one that alerts come from: finegrain@shop.com"
            )
        return value

    # Pydantic runs the last of these first.
    @field_validator("*", mode="before")
    @classmethod
    def _text(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str) and not is_text(value):
            name = variables(info.field_name)[0]
            if name == "TMPDIR" or info.field_name in {each.name for each in fields(Settings)}:
                raise ValueError(f"{name} is not UTF-8 text, so DuckDB cannot open that path; use another path")
            raise ValueError(f"{name} is not UTF-8 text; set it again")
        return value

    @model_validator(mode="after")
    def _mail(self) -> Environment:
        if self.alert_smtp is None:
            return self
        if self.alert_from is None:
            raise ValueError("FINEGRAIN_ALERT_FROM is missing; write the one that alerts come from: finegrain@shop.com")
        has_user = bool(urlsplit(self.alert_smtp).username)
        if has_user and self.alert_smtp_password is None:
            raise ValueError("FINEGRAIN_ALERT_SMTP names a user; set FINEGRAIN_ALERT_SMTP_PASSWORD, too")
        if not has_user and self.alert_smtp_password is not None:
            raise ValueError(
                "FINEGRAIN_ALERT_SMTP_PASSWORD is set, and FINEGRAIN_ALERT_SMTP names no user; write smtps://user@host:port"
            )
        return self


@lru_cache(maxsize=8)
def _read(_: tuple[str | None, ...]) -> Environment:
    """`Environment` of these values. Reading it takes milliseconds, and dbt asks once a node."""
    try:
        return Environment()
    except ValidationError as error:
        found = [str(each.get("ctx", {}).get("error") or each["msg"]) for each in error.errors()]
    raise FinegrainError("\n".join(dict.fromkeys(found)))


@cache
def variables(name: str | None) -> list[str]:
    """The environment variables that a field of `Environment` is read from, the first of which is documented."""
    alias = Environment.model_fields[str(name)].validation_alias
    return [str(each) for each in alias.choices] if isinstance(alias, AliasChoices) else [str(alias)]


@dataclass(frozen=True)
class Variable:
    """A variable as it is set now: its `value` unless it is a secret, `source` (`environment` or `default`), and what it is for."""

    group: str
    name: str
    value: str
    source: str
    purpose: str


def described() -> list[Variable]:
    """Every variable of `Environment`, as it is set now. Raises FinegrainError for an invalid value."""
    given, places = Environment.read(), settings()
    defaults = {
        **asdict(places),
        "project": PROJECT,
        "temporary": tempfile.gettempdir(),
        "dagster_home": places.home / "dagster",
    }
    found = []
    for name in Environment.model_fields:
        group, names, unset, purpose = documented(name)
        texts = [text for each in names if (text := os.environ.get(each, "").strip())]
        if not texts:
            value = str(defaults.get(name, _plain(unset)))
        else:
            value = HIDDEN if isinstance(getattr(given, name), SecretStr) else without_secrets(texts[0])
        found.append(Variable(group, names[0], value, "environment" if texts else "default", _plain(purpose)))
    return found


def documented(name: str) -> tuple[str, list[str], str, str]:
    """Of a field of `Environment`: its group, its variables, what holds where they are not set, and what it is for, the last two in Markdown."""
    field = Environment.model_fields[name]
    about: Any = field.json_schema_extra
    unset = about["unset"] or ("" if field.default in (None, ()) else str(field.default))
    return about["group"], variables(name), unset, str(field.description)


def _plain(markdown: str) -> str:
    """Markdown without code marks and links; a link in brackets only leads elsewhere."""
    text = re.sub(r" \(\[[^\]]*\]\([^)]*\)\)", "", markdown)
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).replace("`", "")


def is_text(text: str) -> bool:
    """Whether text from the environment, or a file name, is valid UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _location(variable: str, text: str) -> Path | str:
    """A path, or a remote location as text. Raises ValueError for anything else."""
    if variable == "FINEGRAIN_LAKE_CATALOG" and re.match("postgres(ql)?:", text):
        # Locations are printed and passed to other processes, so they must not contain a password.
        if re.search(r"pass(word|wd|phrase)?\s*=|://[^@]*:[^@]*@", unquote(text), re.IGNORECASE):
            raise ValueError(
                f"{variable} contains a password; remove it, and set PGPASSWORD or use libpq's file ~/.pgpass"
            )
        words = re.sub("^postgres(ql)?:(?!//)", "", text)
        if not re.fullmatch(
            r"postgres(ql)?://[^\s:@]*@?[^\s@]*|\s*(\w+\s*=\s*('(?:[^'\\]|\\.)*'|[^\s'@]*)(\s+|$))*", words
        ):
            raise ValueError(
                f"{variable} is not a PostgreSQL address; write postgresql://user@host:5432/database, or postgres:dbname=… host=… user=…"
            )
        return re.sub("^postgres(ql)?://", "postgres:postgresql://", text)
    if variable == "FINEGRAIN_LAKE_DATA" and text.startswith("s3://"):
        # A secret key may contain a slash, so check only the text before the first one, which should be the bucket.
        if re.search("[@:]", text.removeprefix("s3://").partition("/")[0]):
            raise ValueError(
                f"{variable} contains credentials; write s3://bucket/folder, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        if "?" in text:
            raise ValueError(
                f"{variable} contains a '?'; write s3://bucket/folder, and set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
                "AWS_REGION and FINEGRAIN_S3_ENDPOINT for the rest"
            )
        return text.rstrip("/")
    if "://" in text or (variable in _ELSEWHERE and re.search(":[^/]*@|@.*:", text)):
        raise ValueError(f"{variable} is not a supported location; write a path{_ELSEWHERE.get(variable, '')}")
    return Path(text)


def settings() -> Settings:
    """The paths that the environment says. Raises FinegrainError for an invalid value of any variable."""
    given = Environment.read()
    default = Settings.below((given.home or project.default_home()).resolve())
    overrides = {
        field.name: value.resolve() if isinstance(value, Path) else value
        for field in fields(Settings)
        if (value := getattr(given, field.name)) is not None
    }
    found = replace(default, **overrides)
    _check_paths(found, given)
    return found


def _check_paths(found: Settings, given: Environment) -> None:
    """Reject a folder where a file is expected, and a file where a folder is. Otherwise it would fail much later with an OS error."""
    for field in fields(Settings):
        path = getattr(found, field.name)
        if not isinstance(path, Path):
            continue
        variable = _variable("home" if getattr(given, field.name) is None else field.name)
        wanted = "file" if field.name in ("lake_catalog", "warehouse") else "folder"
        try:
            existing = next(each for each in (path, *path.parents) if each.exists())
        except OSError as error:
            raise FinegrainError(f"{path}: {error.strerror}; set {variable} to another path") from None
        if existing == path and wanted == "file":
            if path.is_dir():
                raise FinegrainError(f"{path} is a folder, but a file is expected; set {variable} to another path")
        elif not existing.is_dir():
            raise FinegrainError(f"{existing} is a file, but a folder is expected; set {variable} to another path")
    project.check()


def memory_bytes(text: str) -> float:
    """`3GB`, `500MB` or `2GiB` in bytes; 0 if the text is not such an amount, or is absurdly large."""
    found = re.fullmatch(r"([0-9]+(?:[.][0-9]+)?) *([kmgt](?:i?b)?)", text.strip().lower())
    size = float(found[1]) * _UNITS[found[2]] if found else 0.0
    return size if size < 2**60 else 0.0


def is_server(address: str) -> bool:
    """Whether this is a server address without credentials or a query: credentials have their own settings, and addresses are printed."""
    return re.fullmatch(r"https?://([^\s@:/?#\[\]]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?(/[^\s@?#]*)?", address) is not None


def address_parts(url: str) -> SplitResult | None:
    """An address in parts, if it is one that names a host."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts if re.fullmatch("[\x21-\x7e]+", url) and parts.hostname else None


def private() -> None:
    """Set the umask for this process and its children, by default so that only the owner can read new files. Raises FinegrainError."""
    os.umask(Environment.read().umask)
