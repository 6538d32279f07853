"""Alerts: compares current problems with those already reported, and reports new, changed and resolved ones.

The caller passes all current problems (`notify`). What was sent to each channel is kept in `$FINEGRAIN_HOME/alerts.json`, so a channel that
could not be reached gets the current state later, and the others get nothing twice. Values of failing rows are masked and texts are scrubbed
before they are sent. Thresholds are in `alerts.yml`.
"""

from __future__ import annotations

import contextlib
import html
import http.client
import ipaddress
import json
import logging
import operator
import os
import re
import smtplib
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Protocol, get_args

from pydantic import AwareDatetime, BaseModel, Field, ValidationError, field_validator, model_validator

from orchestration.config.project import PACKAGE, PROJECT
from orchestration.config.settings import MAIL_ADDRESS, Environment, Settings, address_parts, settings
from orchestration.errors import FinegrainError
from orchestration.lake.locks import one_at_a_time
from orchestration.mapping.contracts import RAW_TABLES
from orchestration.mapping.mapping import Strict, nearest, read_yaml, sentences
from orchestration.quality.account import said

Kind = Literal["run", "check", "freshness", "quality", "anomaly", "stream", "dead_letters", "lag"]
What = Literal["new", "changed", "recovered"]

DATA_ENGINEERING: Final = "data-engineering"
#: The packaged rules, and the record of sent alerts below FINEGRAIN_HOME.
RULES: Final = Path(__file__).with_name("alerts.yml")
RECORD: Final = "alerts.json"
#: Timeouts in seconds: of a webhook or mail server, and of a loader.
PATIENCE: Final = 10.0
LOADER_PATIENCE: Final = 5.0
#: Limits slightly below Slack's, which counts some characters twice; and the number of sample rows.
SECTION: Final = 2900
BLOCKS: Final = 50
HEADER: Final = 140
SAMPLE_ROWS: Final = 5

_log: Final = logging.getLogger("finegrain.alerts")


@dataclass(frozen=True)
class Problem:
    """A current problem. `kind` and `subject` (a job, a check, a table, a rule, a loader) identify it; a new `state` is reported as a change, while
    changed numbers in `text`, one sentence, are not. `sample`: first failing rows, unmasked. `after`: seconds for which the problem must last before
    it is reported."""

    kind: Kind
    subject: str
    owner: str
    text: str
    link: str | None = None
    sample: tuple[Mapping[str, Any], ...] = ()
    state: str = ""
    after: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """`kind:subject` of new, changed and resolved problems since the last check; how many are still open; and which channels could not be reached
    (`channel: error`)."""

    opened: list[str]
    changed: list[str]
    recovered: list[str]
    still_open: int
    undelivered: list[str]


# Masking of everything that is sent.

MASK: Final = "•••"


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Columns without personal data. All others are masked, whatever they contain.
SHOWN: Final = _names(
    "_source source origin verdict event_type event_name status table table_name raw_table model node test mart rule rule_id "
    "reason reasons record column_name field_name measure currency device category brand weight_unit product_id "
    "other_product_id arrival_day as_of as_of_day available_at raw_available_at ingested_at _ingested_at published_at"
)
#: Columns that are shown if they contain a number, and columns that are shown if they contain a boolean.
COUNTS: Final = _names(
    "n n_records num_rows row_count rows count failures warnings raw_rows kept duplicates quarantined kept_items "
    "duplicate_items quarantined_items missing_rows imputed_rows total_rows"
)
FLAGS: Final = re.compile("[a-z_]+_(is_outlier|was_missing|is_corrected)")
_CODES: Final = frozenset({"product_id", "other_product_id"})

_LONGEST: Final = 20_000
_CREDENTIALS: Final = re.compile(r"//[^\s/@:]*:\S*@")
_PASSWORDS: Final = re.compile(r"\b(password|passwd|pwd|token|secret|api_?key)( *= *)[^\s&,;]+", re.IGNORECASE)
_WORDS: Final = re.compile(r"""[^\s<>()\[\]{},;:"=/]+""")
_IPV4: Final = re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?!\.?\d)")
_IPV6: Final = re.compile(r"(?<![\w.])[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*(?!\w)")
# Seven digits or more may be a phone or card number; dates, times, UUIDs and hashes are not.
_DIGITS: Final = re.compile(
    r"(?P<kept>(?<!\d)(?:19|20)\d\d-[01]\d-[0-3]\d(?:[ T]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?)?(?!\d)"
    r"|(?<![0-9A-Za-z])[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?![0-9A-Za-z])"
    r"|(?<![0-9A-Za-z])(?=[0-9]*[a-f])[0-9a-f]{32,64}(?![0-9A-Za-z]))"
    r"|(?<!\d)[+(]*\d(?:[\s.()/\u2010-\u2015-]{0,2}\d){6,}"
)


def scrub(text: str) -> str:
    """`text` without e-mail and IP addresses, passwords, and digits that look like phone or card numbers."""
    text = _CREDENTIALS.sub(f"//{MASK}@", text[:_LONGEST])
    text = _PASSWORDS.sub(rf"\1\2{MASK}", text)
    text = _WORDS.sub(_mailbox, text)
    text = _IPV6.sub(_ipv6, _IPV4.sub(MASK, text))
    return _DIGITS.sub(lambda found: found["kept"] or MASK, text)


def _mailbox(found: re.Match[str]) -> str:
    if found[0].startswith(f"{MASK}@"):  # the host after a masked password
        return found[0]
    return MASK if re.search(r".(@|%40).|^@.+\..", found[0]) else found[0]


def _ipv6(found: re.Match[str]) -> str:
    text = found[0] if found[0].startswith("::") else found[0].removeprefix(":")
    for end in range(len(text), max(len(text) - 3, 2), -1):  # a full stop or a colon may follow
        with contextlib.suppress(ValueError):
            ipaddress.IPv6Address(text[:end])
            return found[0].replace(text[:end], MASK)
    return found[0]


def mask(row: Mapping[str, Any]) -> dict[str, Any]:
    """A failing row that may be sent: values of known harmless columns, a mask for all others; None stays None."""
    return {_plain(str(name), 60): _masked(str(name).lower(), value) for name, value in row.items()}


def _masked(name: str, value: Any) -> Any:
    if value is None:
        return None
    is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    if (name in COUNTS and is_number) or (isinstance(value, bool) and FLAGS.fullmatch(name)):
        return value
    if name not in SHOWN:
        return MASK
    if is_number or isinstance(value, bool | date):  # a datetime is a date
        return value
    if isinstance(value, str):  # product ids are often numbers
        is_code = name in _CODES and re.fullmatch("[A-Za-z0-9_.-]{1,40}", value)
        return value if is_code else _plain(value, 80)
    if isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
        return [_plain(each, 80) for each in value[:10]]
    return MASK


def _plain(text: str, longest: int) -> str:
    """The scrubbed text as one printable line."""
    text = text[:_LONGEST].encode("utf-8", "replace").decode()
    text = scrub(" ".join("".join(each if each.isprintable() else " " for each in text).split()))
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _page(link: str | None) -> str | None:
    """A link without passwords. Its run id is kept, so that the link still works."""
    parts = address_parts(link) if link and len(link) <= 400 and not re.search('[<>|"]', link) else None
    if parts is None or parts.scheme not in ("http", "https"):
        return None
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


# Messages.


@dataclass(frozen=True)
class Line:
    """One problem in a message, masked and scrubbed. `lasted`: how long a resolved problem lasted."""

    what: What
    about: str
    text: str
    link: str | None = None
    sample: tuple[str, ...] = ()
    lasted: str = ""

    @property
    def head(self) -> str:
        """The change and the problem."""
        return f"{self.what}: {self.about}" + (f", after {self.lasted}" if self.what == "recovered" else "")

    @property
    def sentence(self) -> str:
        """What is wrong, or was."""
        return f"It was: {self.text}" if self.what == "recovered" else self.text


@dataclass(frozen=True)
class Message:
    """One message to an owner: new problems, then changed ones, then resolved ones. `to`: the owner's addresses."""

    owner: str
    to: tuple[str, ...]
    lines: tuple[Line, ...]

    @property
    def title(self) -> str:
        """The subject line: counts and the owner."""
        count = {what: sum(line.what == what for line in self.lines) for what in get_args(What)}
        new = f"{count['new']} new problem" + ("s" if count["new"] > 1 else "")
        parts = [new, f"{count['changed']} changed", f"{count['recovered']} recovered"]
        counts = [part for part in parts if not part.startswith("0 ")]
        return f"finegrain: {', '.join(counts)} ({self.owner})"

    @property
    def body(self) -> str:
        """Plain text, one paragraph per problem."""
        return "\n\n".join(
            "\n  ".join([line.head, line.sentence, *line.sample, *([line.link] if line.link else [])])
            for line in self.lines
        )


class Undelivered(Exception):
    """A channel could not be reached, or rejected the message. The error text contains no secret."""


class Channel(Protocol):
    """A channel for alerts. `name` is its key in the record of sent alerts."""

    @property
    def name(self) -> str: ...

    def send(self, message: Message) -> None:
        """Raises Undelivered."""


@dataclass(frozen=True)
class Log:
    """The log `finegrain.alerts`: one record for each problem."""

    name: str = "log"

    def send(self, message: Message) -> None:
        """Log current problems as warnings and resolved ones as infos."""
        for line in message.lines:
            level = logging.INFO if line.what == "recovered" else logging.WARNING
            rest = "".join(f" | {part}" for part in (*line.sample, line.link) if part)
            _log.log(level, "%s (%s): %s%s", line.head, message.owner, line.sentence, rest)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follow no redirects: a redirected POST would become an empty GET."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(frozen=True)
class Webhook:
    """An incoming webhook of Slack or a compatible chat. Its URL is secret: errors, logs and repr show only the host."""

    url: str = field(repr=False)
    name: str = "webhook"

    def send(self, message: Message) -> None:
        """One POST. Raises Undelivered, also if the response is not 2xx."""
        content = json.dumps(_slack(message)).encode()
        host = _host(self.url)
        try:
            request = urllib.request.Request(self.url, content, {"Content-Type": "application/json"})
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=PATIENCE):
                return
        except urllib.error.HTTPError as error:
            error.close()
            raise Undelivered(f"{host} answers {error.code}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Undelivered(f"{host} is not reached: {_cause(error)}") from None


def _host(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return f"{parts.hostname}" + (f":{parts.port}" if parts.port else "")


def _cause(error: Exception) -> str:
    """The reason for a failed connection. Only system errors are quoted: others may contain the address."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return "it takes too long"
    if isinstance(cause, ssl.SSLError):
        return f"TLS: {cause.reason or type(cause).__name__}"
    return (isinstance(cause, OSError) and cause.strerror) or type(cause).__name__


def _slack(message: Message) -> dict[str, Any]:
    """A message in Slack's format. `text` is for notifications, and for chats that read only this field."""
    sections = []
    for line in message.lines:
        link = f"<{html.escape(line.link, quote=False)}|Open in Dagster>" if line.link else ""
        parts = [f"*{_escaped(line.head, 600)}*", _escaped(line.sentence, 1500), link]
        sections.append(_fit([part for part in (*parts, *(f"• {_escaped(row, 1000)}" for row in line.sample)) if part]))
    title = _escaped(message.title, SECTION)
    left = len(sections) - (BLOCKS - 1)  # the header is also a block
    shown = sections if left <= 0 else [*sections[: BLOCKS - 2], f"… and {left + 1} more"]
    header = message.title if len(message.title) <= HEADER else message.title[: HEADER - 1] + "…"
    return {
        "text": _fit([title, *sections]),
        "blocks": [
            {"type": "header", "text": {"type": "plain_text", "text": header}},
            *({"type": "section", "text": {"type": "mrkdwn", "text": text, "verbatim": True}} for text in shown),
        ],
    }


def _escaped(text: str, longest: int) -> str:
    """Escape & < and > for Slack, without cutting inside an escape."""
    escaped = html.escape(text, quote=False)
    return escaped if len(escaped) <= longest else re.sub("&[a-z]*$", "", escaped[: longest - 1]) + "…"


def _fit(parts: Sequence[str]) -> str:
    """Join lines, as many as fit into one Slack section."""
    for shown in range(len(parts), 0, -1):
        text = "\n".join(parts[:shown]) + (f"\n… and {len(parts) - shown} more" if shown < len(parts) else "")
        if len(text) <= SECTION:
            return text
    return parts[0][:SECTION]


@dataclass(frozen=True)
class Mail:
    """Plain-text mail from `sender` over SMTP. `secure`: TLS from the start; otherwise STARTTLS if the server offers it. A password is
    never sent without TLS, except to this machine."""

    host: str
    port: int
    sender: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    secure: bool = False
    name: str = "mail"

    def send(self, message: Message) -> None:
        """One mail to all addresses of the owner. Raises Undelivered."""
        if not message.to:
            raise Undelivered(
                f"nobody to write to; name an address under owners.{message.owner} or everyone_else, in the file of FINEGRAIN_ALERTS"
            )
        mail = EmailMessage()
        mail["Subject"], mail["From"], mail["To"] = message.title, self.sender, ", ".join(message.to)
        mail["Date"], mail["Message-ID"] = format_datetime(datetime.now(UTC)), make_msgid(domain=self._domain)
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(message.body + "\n")
        place = f"{self.host}:{self.port}"
        try:
            self._hand_over(mail)
        except smtplib.SMTPAuthenticationError as error:
            raise Undelivered(
                f"{place} refuses the login of {scrub(self.user or '')} ({error.smtp_code}); is FINEGRAIN_ALERT_SMTP_PASSWORD right?"
            ) from None
        except smtplib.SMTPResponseException as error:
            raise Undelivered(f"{place} answers {error.smtp_code}") from None
        except smtplib.SMTPRecipientsRefused as error:
            codes = sorted({str(code) for code, _ in error.recipients.values()})
            raise Undelivered(f"{place} refuses the addresses of {message.owner} ({', '.join(codes)})") from None
        except smtplib.SMTPNotSupportedError:
            raise Undelivered(f"{place} takes no login, or no such address; is FINEGRAIN_ALERT_SMTP right?") from None
        except (OSError, ValueError) as error:  # smtplib's errors are OSErrors
            raise Undelivered(f"{place} is not reached: {_cause(error)}") from None

    @property
    def _domain(self) -> str:
        return self.sender.rpartition("@")[2]

    def _hand_over(self, mail: EmailMessage) -> None:
        # With an explicit host name, smtplib does no DNS lookup.
        if self.secure:
            context = ssl.create_default_context()
            server: smtplib.SMTP = smtplib.SMTP_SSL(
                self.host, self.port, self._domain, timeout=PATIENCE, context=context
            )
        else:
            server = smtplib.SMTP(self.host, self.port, self._domain, timeout=PATIENCE)
        try:
            server.ehlo_or_helo_if_needed()
            is_safe = self.secure or self.host in ("localhost", "127.0.0.1", "::1")
            if not self.secure and server.has_extn("starttls"):
                server.starttls(context=ssl.create_default_context())
                server.ehlo()
                is_safe = True
            if self.user is not None:
                if not is_safe:
                    raise Undelivered(f"{self.host}:{self.port} offers no TLS for the password; write smtps://")
                server.login(self.user, self.password or "")
            refused = server.send_message(mail)
            if refused:  # some of several addresses: the others have the mail, so do not send it again
                _log.warning("%s:%s refuses %s of the addresses of a mail", self.host, self.port, len(refused))
        finally:
            with contextlib.suppress(OSError):  # delivery is already decided
                server.quit()
            server.close()


def channels_from_environment() -> list[Channel]:
    """The log; a webhook if FINEGRAIN_ALERT_WEBHOOK is set; mail if FINEGRAIN_ALERT_SMTP names a server, as in `smtps://user@host:465`
    (default ports: 25, or 465 for smtps), from FINEGRAIN_ALERT_FROM. Raises FinegrainError."""
    channels: list[Channel] = [Log()]
    given = Environment.read()
    if given.alert_webhook is not None:
        channels.append(Webhook(given.alert_webhook.get_secret_value()))
    if given.alert_smtp is not None and given.alert_from is not None:
        parts = urllib.parse.urlsplit(given.alert_smtp)
        secure = parts.scheme == "smtps"
        user = urllib.parse.unquote(parts.username) if parts.username else None
        password = given.alert_smtp_password.get_secret_value() if given.alert_smtp_password is not None else None
        assert parts.hostname
        port = parts.port or (465 if secure else 25)
        channels.append(Mail(parts.hostname, port, given.alert_from, user, password, secure))
    return channels


# The rules.


Hours = Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, strict=True)]
Count = Annotated[int, Field(ge=0, strict=True)]


class Freshness(Strict):
    """Limits in hours: since the newest row of a raw table arrived, and since the last publish."""

    lake: dict[str, Hours] = Field(default={})
    published: Hours | None = None

    @field_validator("lake")
    @classmethod
    def _tables(cls, given: dict[str, float]) -> dict[str, float]:
        for name in given:
            if name not in RAW_TABLES:
                raise ValueError(f"no such raw table '{name}'" + nearest(name, RAW_TABLES))
        return given


class Bounds(Strict):
    """The allowed range of a metric, as shares from 0 to 1."""

    at_least: Share | None = None
    at_most: Share | None = None

    @model_validator(mode="after")
    def _some(self) -> Bounds:
        if self.at_least is None and self.at_most is None:
            raise ValueError("give at_least, at_most, or both")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError("at_least is over at_most")
        return self


class Quality(Strict):
    """Shares of all raw rows."""

    kept_share: Bounds | None = None
    quarantined_share: Bounds | None = None
    duplicate_share: Bounds | None = None


class Anomalies(Strict):
    """Of how many closed days before the published build anomalies are reported; without `days`, of none."""

    days: Annotated[int, Field(ge=1, strict=True)] | None = None


class Streams(Strict):
    """Of how many closed minutes of streams anomalies are reported; without `minutes`, of none."""

    minutes: Annotated[int, Field(ge=1, le=60, strict=True)] | None = None


class DeadLetters(Strict):
    """The allowed number of waiting dead letters per rule."""

    at_most: Count | None = None


class LoaderRules(Strict):
    """The allowed lag in messages, and the seconds that a loader may be silent; without `silent_seconds`, silence is not a problem."""

    lag_at_most: Count | None = None
    silent_seconds: Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False)] | None = None


class Rules(Strict):
    """What counts as a problem, and who gets mail about it."""

    owners: dict[str, tuple[str, ...]] = Field(default={})
    everyone_else: tuple[str, ...] = ()
    freshness: Freshness = Freshness()
    quality: Quality = Quality()
    anomalies: Anomalies = Anomalies()
    streams: Streams = Streams()
    dead_letters: DeadLetters = DeadLetters()
    loader: LoaderRules = LoaderRules()

    @field_validator("owners", mode="before")
    @classmethod
    def _by_owner(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not all(isinstance(owner, str) for owner in given):
            raise ValueError("write owners and their addresses, as in {data-engineering: [data@shop.com]}")
        return {owner: _addresses(addresses, f"{owner}: ") for owner, addresses in given.items()}

    @field_validator("everyone_else", mode="before")
    @classmethod
    def _all(cls, given: Any) -> Any:
        return _addresses(given)

    def addresses(self, owner: str) -> tuple[str, ...]:
        """The mail addresses for problems of `owner`."""
        return self.owners.get(owner) or self.everyone_else


def _addresses(given: Any, of: str = "") -> tuple[str, ...]:
    if not isinstance(given, list | tuple):
        raise ValueError(f"{of}write a list of mail addresses, as in [data@shop.com]")
    for address in given:
        if not isinstance(address, str) or not MAIL_ADDRESS.fullmatch(address):
            raise ValueError(f"{of}{address!r} is not a mail address; write it like data@shop.com")
    return tuple(given)


_SECTIONS: Final[dict[str, type[BaseModel]]] = {
    "freshness": Freshness,
    "quality": Quality,
    "anomalies": Anomalies,
    "streams": Streams,
    "dead_letters": DeadLetters,
    "loader": LoaderRules,
}


def _keys(parents: list[str]) -> Iterable[str]:
    """The valid keys of rules below `parents`."""
    return (Rules if not parents else Bounds if len(parents) > 1 else _SECTIONS[parents[0]]).model_fields


def _rules_of_project() -> Path:
    """alerts.yml of a shop's project, else the packaged rules."""
    own = PROJECT / "alerts.yml"
    return own if PROJECT != PACKAGE and own.is_file() else RULES


def read_rules(path: str | Path | None = None) -> Rules:
    """Read rules from `path`, else from the file in FINEGRAIN_ALERTS, else from alerts.yml of a shop's project; sections it does not have are taken from the
    packaged file.
    Raises FinegrainError that lists everything wrong with it."""
    path = Path(path or Environment.read().alerts or _rules_of_project())
    given = read_yaml(path, "alerts")
    if not isinstance(given, dict):
        raise FinegrainError(f"{path}: write one or more of the keys {', '.join(Rules.model_fields)}")
    whole = given if path == RULES else {**read_yaml(RULES, "alerts"), **given}
    try:
        return Rules.model_validate(whole)
    except ValidationError as error:
        problems = sentences(error, whole, _keys)
        raise FinegrainError("\n".join(f"{path}: {problem}" for problem in problems)) from None


# Finding problems.


def stale(
    arrivals: Mapping[str, datetime | None],
    published_at: datetime | None,
    now: datetime,
    rules: Rules,
    link: str | None = None,
) -> list[Problem]:
    """Raw tables whose newest row is too old, and published marts that are too old. A naive time is UTC; None is never stale."""
    ages = [
        (table, f"the newest row of {table} came", arrivals.get(table), hours)
        for table, hours in rules.freshness.lake.items()
    ]
    if rules.freshness.published is not None:
        ages.append(("published marts", "the marts were last published", published_at, rules.freshness.published))
    return [
        Problem("freshness", subject, DATA_ENGINEERING, f"{what} {_span(age)} ago; {hours:g} hours are allowed", link)
        for subject, what, moment, hours in ages
        if moment is not None and (age := _utc(now) - _utc(moment)) > timedelta(hours=hours)
    ]


def poor_quality(ledger: Mapping[str, int], rules: Rules, link: str | None = None) -> list[Problem]:
    """Shares of `raw_rows` (`kept`, `quarantined`, `duplicates`) that are out of bounds; none if there are no rows."""
    problems = []
    for metric, count in _METRICS.items():
        bounds: Bounds | None = getattr(rules.quality, metric)
        if bounds is None or not ledger["raw_rows"]:
            continue
        share = ledger[count] / ledger["raw_rows"]
        limits = (("at least", bounds.at_least, operator.lt), ("at most", bounds.at_most, operator.gt))
        for bound, limit, is_out in limits:
            if limit is not None and is_out(share, limit):
                text = (
                    f"{share:.2%} of {ledger['raw_rows']:,} raw rows are {count}; it should be {bound} {100 * limit:g}%"
                )
                problems.append(Problem("quality", metric, DATA_ENGINEERING, text, link, state=bound))
    return problems


#: The column of event_ledger that each metric of the rules divides by `raw_rows`.
_METRICS: Final = {"kept_share": "kept", "quarantined_share": "quarantined", "duplicate_share": "duplicates"}


def anomalous(
    found: Iterable[Mapping[str, Any]], link: str | None = None, kind: Literal["anomaly", "stream"] = "anomaly"
) -> list[Problem]:
    """Sources, or streams, with anomalies, one problem for each owner of the rules that found them. `found`: anomalies by day (or minute), source and owner, the newest
    first (account.anomalies, streams.anomalies). An incident shows in many metrics, so the newest day of a source says it all."""
    problems: dict[str, Problem] = {}
    for each in found:
        subject = f"{each['source']} ({each['owner']})"
        if subject in problems:
            continue
        rules = ", ".join(each["rules"])
        values = "; ".join(said(value) for value in each["clearest"])
        at = f"on {each['day']}" if kind == "anomaly" else f"in the minute of {each['minute']:%Y-%m-%d %H:%M} UTC"
        text = f"{each['severity']}: {at} {each['source']} is anomalous by {rules}: {values}"
        problems[subject] = Problem(kind, subject, each["owner"], text, link, state=f"{each['severity']}: {rules}")
    return list(problems.values())


def dead_letters(waiting: Mapping[str, int], rules: Rules, link: str | None = None) -> list[Problem]:
    """Rules with too many waiting dead letters."""
    limit = rules.dead_letters.at_most
    return [
        Problem(
            "dead_letters",
            rule,
            DATA_ENGINEERING,
            f"{count:,} dead letter{' waits' if count == 1 else 's wait'} by rule {rule}; {limit:,} may",
            link,
        )
        for rule, count in waiting.items()
        if limit is not None and count > limit
    ]


@dataclass(frozen=True)
class Loader:
    """The metrics of a running `finegrain stream`. `stream_id`: its stream, as in `kafka:shop.events`, or "" if unknown; `up`: whether
    the stream responds; `lag`: messages (for a folder bytes, for Kinesis milliseconds) not yet read, by partition; `delay_seconds`:
    from the median event of its last batch to its landing."""

    stream_id: str
    up: bool
    lag: Mapping[str, int]
    delay_seconds: float | None = None


def lagging(loaders: Mapping[str, Loader | None], rules: Rules, link: str | None = None) -> list[Problem]:
    """Loaders that do not respond (None), whose stream does not respond, or whose lag is too large; one problem each."""
    problems = []
    limit, silent = rules.loader.lag_at_most, rules.loader.silent_seconds
    for name, loader in loaders.items():
        lag = sum(loader.lag.values()) if loader else 0
        if loader is None or not loader.up:
            if silent is None:
                continue
            state, text = ("down", "the stream does not answer") if loader else ("silent", "the loader does not answer")
        elif limit is not None and lag > limit:
            silent, state = 0.0, "lag"
            text = f"the loader is {lag:,} messages behind; {limit:,} are allowed"
            if loader.delay_seconds is not None:
                text += f"; events of its last batch landed after {_span(timedelta(seconds=loader.delay_seconds))}"
        else:
            continue
        text += f" ({loader.stream_id})" if loader and loader.stream_id else ""
        problems.append(Problem("lag", name, DATA_ENGINEERING, text, link, state=state, after=silent))
    return problems


def read_loader(url: str) -> Loader | None:
    """Read the metrics of the loader at `url` (its `--metrics-port`); None if there is no answer. Raises FinegrainError if `url` is not a URL."""
    from prometheus_client.parser import text_string_to_metric_families

    parts = address_parts(url)
    if parts is None or parts.scheme not in ("http", "https"):
        raise FinegrainError(f"'{scrub(url)}' is not the URL of a loader's metrics; write http://host:port/metrics")
    try:
        with urllib.request.urlopen(url, timeout=LOADER_PATIENCE) as answer:
            text = answer.read(2**22).decode()
        found: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
        (_, up), *_ = found["finegrain_stream_up"]
        lag = {labels["part"]: int(value) for labels, value in found.get("finegrain_stream_lag", [])}
        stream_id = found.get("finegrain_stream_info", [({}, 0.0)])[0][0].get("place", "")
    except (OSError, http.client.HTTPException, ValueError, KeyError, OverflowError):
        return None  # no loader, or something else
    delay = found.get("finegrain_stream_event_delay_seconds", [({}, 0.0)])[0][1]
    return Loader(stream_id, bool(up), lag, delay or None)


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _span(span: timedelta) -> str:
    """`3 hours 5 minutes`."""
    minutes = int(span.total_seconds() // 60)
    if minutes < 1:
        return "less than a minute"
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    counts = [(days, "day"), (hours, "hour"), (minutes, "minute")][0 if days else 1 :][:2]
    return " ".join(f"{count} {unit}" + ("s" if count > 1 else "") for count, unit in counts if count)


# The record of sent alerts.


class _Known(Strict):
    """A problem as last seen or reported. `over`: when it was first found resolved, if that has not been reported yet."""

    kind: Kind
    subject: str
    owner: str
    state: str
    text: str
    link: str | None
    since: AwareDatetime
    over: AwareDatetime | None = None


class _Memory(Strict):
    """By `kind:subject`: problems that have not lasted long enough yet, open problems, and the open problems reported to each channel."""

    waiting: dict[str, _Known] = Field(default={})
    open: dict[str, _Known] = Field(default={})
    channels: dict[str, dict[str, _Known]] = Field(default={})


def notify(
    problems: Iterable[Problem],
    *,
    looked: Collection[Kind],
    rules: Rules,
    channels: Sequence[Channel],
    now: datetime,
    where: Settings | None = None,
) -> Outcome:
    """Send each channel the changes it has not received. `problems`: all current problems at `now` of the kinds in `looked`; problems of other
    kinds stay as they were. A failing channel is in the result and the log, and is tried again the next time. Raises FinegrainError if the
    record of sent alerts cannot be read or written."""
    where = where or settings()
    path, now = where.home / RECORD, _utc(now)
    existing = {_unicode(f"{problem.kind}:{problem.subject}"): problem for problem in problems}
    with one_at_a_time(path.with_suffix(".lock")):
        memory = _remembered(path)
        before = dict(memory.open)
        for known in (memory.open, memory.waiting):
            for key in [key for key, each in known.items() if each.kind in looked and key not in existing]:
                del known[key]
        for key, problem in existing.items():
            seen = memory.open.get(key) or memory.waiting.pop(key, None)
            each = _known(problem, min(seen.since, now) if seen else now)  # the clock may have been set back
            is_due = key in memory.open or (now - each.since).total_seconds() >= problem.after
            (memory.open if is_due else memory.waiting)[key] = each
        for known in memory.channels.values():
            for key, each in known.items():
                known[key] = each.model_copy(update={"over": None if key in memory.open else each.over or now})
        _remember(memory, path)  # before sending: if the record cannot be written, alerts would be sent again and again

        undelivered: list[str] = []
        for channel in channels:
            known = memory.channels.setdefault(channel.name, {})
            news = _news(known, memory.open)
            for owner in dict.fromkeys(each.owner for _, _, each in news):
                mine = [item for item in news if item[2].owner == owner]
                lines = [
                    _line(what, each, existing[key].sample if what != "recovered" and key in existing else ())
                    for what, key, each in mine
                ]
                error = _deliver(channel, Message(_plain(owner, 60), rules.addresses(owner), tuple(lines)))
                if error is not None:
                    undelivered.append(error)
                    continue
                for what, key, each in mine:
                    if what == "recovered":
                        del known[key]
                    else:
                        known[key] = each
                _remember(memory, path)
    overall = _news(before, memory.open)
    opened, changed, recovered = ([key for what, key, _ in overall if what == each] for each in get_args(What))
    return Outcome(opened, changed, recovered, len(memory.open) - len(opened), list(dict.fromkeys(undelivered)))


def _news(known: Mapping[str, _Known], current: Mapping[str, _Known]) -> list[tuple[What, str, _Known]]:
    """The changes from the `known` problems of a channel to the `current` ones."""
    return [
        *(("new", key, each) for key, each in current.items() if key not in known),
        *(("changed", key, each) for key, each in current.items() if key in known and known[key].state != each.state),
        *(("recovered", key, each) for key, each in known.items() if key not in current),
    ]


def _deliver(channel: Channel, message: Message) -> str | None:
    """Send a message. Returns the error, if any: a failing channel must not affect the others."""
    try:
        channel.send(message)
    except Exception as error:
        said = str(error) if isinstance(error, Undelivered) else type(error).__name__  # others may quote a secret
        _log.warning("not delivered: %s (%s: %s)", message.title, channel.name, said)
        return f"{channel.name}: {said}"
    return None


def _known(problem: Problem, since: datetime) -> _Known:
    return _Known(
        kind=problem.kind,
        subject=_unicode(problem.subject),
        owner=_unicode(problem.owner),
        state=_plain(problem.state, 5000),
        text=_plain(problem.text, 1000),
        link=_page(problem.link),
        since=since,
    )


def _unicode(text: str) -> str:
    """Replace characters that cannot be stored as UTF-8, as in file names with invalid bytes."""
    return text.encode("utf-8", "replace").decode()


def _line(what: What, known: _Known, sample: Iterable[Mapping[str, Any]] = ()) -> Line:
    rows = []
    for row in list(sample)[:SAMPLE_ROWS]:
        line = ", ".join(f"{name}={_shown(value)}" for name, value in mask(row).items())
        rows.append(line if len(line) <= 500 else line[:499] + "…")
    lasted = _span(max(known.over - known.since, timedelta(0))) if known.over else ""
    # A loader's address is a server address, not personal data.
    subject = _CREDENTIALS.sub(f"//{MASK}@", known.subject)[:150] if known.kind == "lag" else _plain(known.subject, 150)
    about = f"{known.kind.replace('_', ' ')} {subject}"
    return Line(what, about, known.text, known.link, tuple(rows), lasted)


def _shown(value: Any) -> str:
    return "null" if value is None else " ".join(value) if isinstance(value, list) else str(value)


def _remembered(path: Path) -> _Memory:
    try:
        return _Memory.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return _Memory()
    except OSError as error:
        raise FinegrainError(f"{path}: the record of alerts cannot be read: {error.strerror}") from None
    except ValidationError:
        raise FinegrainError(
            f"{path}: this is not finegrain's record of alerts; remove the file, and open problems are reported once more"
        ) from None


def _remember(memory: _Memory, path: Path) -> None:
    """Write a new file and rename it, so that the record is never incomplete."""
    draft = path.with_suffix(".draft")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(memory.model_dump_json(indent=1))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise FinegrainError(f"{path}: the record of alerts cannot be written: {error.strerror}") from None
