"""The device that a user agent names, where the row has no device itself. It is found while the row lands, whatever the
text is."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestration.config.settings import Settings
from orchestration.ingest.load import load
from orchestration.lake import lake
from orchestration.sources import devices

CHROME = "AppleWebKit/537.36 (KHTML, like Gecko) Chrome/123.0.0.0"
AGENTS: dict[str, str | None] = {
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.4 Mobile/15E148 Safari/604.1": "mobile",
    "Shop/3.2 (iPhone; iOS 17.0; Scale/3.00)": "mobile",
    f"Mozilla/5.0 (Linux; Android 14; Pixel 8) {CHROME} Mobile Safari/537.36": "mobile",
    "Mozilla/5.0 (Android 13; Mobile; rv:109.0) Gecko/118.0 Firefox/118.0": "mobile",
    "Mozilla/5.0 (BB10; Touch) AppleWebKit/537.10+ (KHTML, like Gecko) Version/10.0.9.2372 Mobile Safari/537.10+": "mobile",
    "Mozilla/5.0 (iPad; CPU OS 16_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/16.6 Mobile/15E148 Safari/604.1": "tablet",
    f"Mozilla/5.0 (Linux; Android 12; SM-X906C) {CHROME} Safari/537.36": "tablet",
    "Mozilla/5.0 (Android 13; Tablet; rv:109.0) Gecko/118.0 Firefox/118.0": "tablet",
    "Mozilla/5.0 (Linux; U; Android 4.4.3; KFTHWI Build/KTU84M) AppleWebKit/537.36 (KHTML, like Gecko) Silk/47.1.79 Safari/537.36": "tablet",
    f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {CHROME} Safari/537.36": "desktop",
    "Mozilla/4.0 (compatible; MSIE 8.0; Windows NT 6.1; Trident/4.0; Tablet PC 2.0)": "desktop",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.3 Safari/605.1.15": "desktop",
    "Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:124.0) Gecko/20100101 Firefox/124.0": "desktop",
    f"Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) {CHROME} Safari/537.36": "desktop",
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)": None,
    f"Mozilla/5.0 (Linux; Android 6.0.1; Nexus 5X) {CHROME} Mobile Safari/537.36 (compatible; Googlebot/2.1)": None,
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) HeadlessChrome/120.0 Safari/537.36": None,
    "Mozilla/5.0 (SMART-TV; Linux; Tizen 5.0) AppleWebKit/537.36 (KHTML, like Gecko) Version/5.0 TV Safari/537.36": None,
    "Mozilla/5.0 (PlayStation; PlayStation 5/2.26) AppleWebKit/605.1.15 (KHTML, like Gecko) Safari/605.1.15": None,
    "curl/8.5.0": None,
    "": None,
    "-": None,
    "Mozilla/5.0 (iPhone; " + "x" * 10_000: None,
}  # fmt: skip


@pytest.mark.parametrize("agent", AGENTS)
def test_what_user_agents_name(agent: str) -> None:
    assert devices.device_of(agent) == AGENTS[agent]


@given(st.text(max_size=200))
def test_any_text_names_a_device_or_none(text: str) -> None:
    assert devices.device_of(text) in (None, "mobile", "tablet", "desktop")


def test_each_text_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import ua_parser

    asked: list[str] = []
    parse = ua_parser.parse_os
    monkeypatch.setattr(ua_parser, "parse_os", lambda text: asked.append(text) or parse(text))
    devices.device_of.cache_clear()
    with duckdb.connect() as con:
        devices.register(con)
        devices.register(con)
        rows = "select 'Mozilla/5.0 (Windows NT ' || (n % 7) || '.0)' as x from range(50000) t(n)"
        found = con.execute(f"select {devices.function('device')}(x), count(*) from ({rows}) group by 1").fetchall()
    assert (
        found == [("desktop", 50_000)] and len(asked) <= 7 * 16
    )  # several threads of the engine may meet the same text at the same time


def test_no_batch_fails_because_the_parser_does(monkeypatch: pytest.MonkeyPatch) -> None:
    import ua_parser

    def fails(text: str) -> Any:
        raise RuntimeError(text)

    devices.device_of.cache_clear()
    monkeypatch.setattr(ua_parser, "parse_device", fails)
    assert devices.device_of(next(iter(AGENTS))) is None
    devices.device_of.cache_clear()


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_the_row_s_own_device_wins(home: Settings, tmp_path: Path, kind: str, mapped: bool) -> None:
    rows = [(agent, own) for agent in AGENTS for own in ("", "fridge", None)]
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows(
            [("t", "at", "u", "agent", "dev"), *(("view", "2024-01-01", n, *row) for n, row in enumerate(rows))]
        )
    lines = [
        {"t": "view", "at": "2024-01-01", "u": n, "agent": agent, "dev": own} for n, (agent, own) in enumerate(rows)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    duckdb.connect().execute(f"copy (from read_json('{tmp_path}/a.jsonl')) to '{tmp_path}/a.parquet'")
    fields = {"event_type": "t", "event_at": "at", "user_id": "u", "user_agent": "agent"} | (
        {"device": "dev"} if mapped else {}
    )
    path = tmp_path / "shop.yml"
    entry = {"files": f"a.{kind}", "available_at": "event_time", "personal": {"user_agent": "keep"}, "fields": fields}
    path.write_text(yaml.safe_dump({"source": "shop", "tables": {"events": entry}}))
    load(path, data=tmp_path)
    con = lake.connect(home, read_only=True)
    found = con.execute("select device, user_agent from lake.raw.events order by user_id::int").fetchall()
    con.close()
    assert [device or None for device, _ in found] == [own if own and mapped else AGENTS[agent] for agent, own in rows]
    assert [agent or "" for _, agent in found] == [agent for agent, _ in rows], "the user agent itself stays as it came"
    assert load(path, data=tmp_path, remap=True).rows == 0
