"""The class of client that a user agent names. It is found while the row lands, whatever the text is, and the rule bot_user_agent reads it alone."""

from __future__ import annotations

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
from orchestration.simulation.words import AGENTS as BROWSERS
from orchestration.sources import devices
from orchestration.sources.clients import LONGEST, client_class_of

WEBKIT = "AppleWebKit/537.36 (KHTML, like Gecko)"
CHROME = f"{WEBKIT} Chrome/142.0.0.0"
#: As they are documented or were seen, one of each kind.
CRAWLERS = [
    # search engines, also by a name without a word for it
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    f"Mozilla/5.0 (Linux; Android 6.0.1; Nexus 5X Build/MMB29P) {CHROME} Mobile Safari/537.36 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "Mozilla/5.0 (compatible; Yahoo! Slurp; http://help.yahoo.com/help/us/ysearch/slurp)",
    "Baiduspider+(+http://www.baidu.com/search/spider.htm)",
    "Sogou web spider/4.0(+http://www.sogou.com/docs/help/webmasters.htm#07)",
    f"Mozilla/5.0 {WEBKIT}; compatible; OAI-SearchBot/1.0; +https://openai.com/searchbot",
    # collectors of training data
    f"Mozilla/5.0 {WEBKIT}; compatible; GPTBot/1.2; +https://openai.com/gptbot)",
    f"Mozilla/5.0 {WEBKIT}; compatible; ClaudeBot/1.0; +claudebot@anthropic.com)",
    "CCBot/2.0 (https://commoncrawl.org/faq/)",
    f"Mozilla/5.0 (Linux; Android 5.0) {WEBKIT} Mobile Safari/537.36 (compatible; Bytespider; spider-feedback@bytedance.com)",
    "meta-externalagent/1.1 (+https://developers.facebook.com/docs/sharing/webmasters/crawler)",
    # previews, monitors, marketing
    "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)",
    "Mozilla/5.0 (compatible; AhrefsBot/7.0; +http://ahrefs.com/robot/)",
    "Pingdom.com_bot_version_1.4_(http://www.pingdom.com/)",
    # browsers without a screen, and libraries
    f"Mozilla/5.0 (X11; Linux x86_64) {WEBKIT} HeadlessChrome/120.0.0.0 Safari/537.36",
    f"Mozilla/5.0 (Unknown; Linux x86_64) {WEBKIT} PhantomJS/2.1.1 Safari/538.1",
    f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {CHROME} Safari/537.36 Playwright/1.40.0",
    "curl/8.5.0",
    "Wget/1.21.4",
    "python-requests/2.32.3",
    "Scrapy/2.11.0 (+https://scrapy.org)",
    "Go-http-client/2.0",
    "libwww-perl/6.72",
    # in no list
    "PriceWatchCrawler/0.1",
    "my-own-bot",
]
AGENTS = [
    f"Mozilla/5.0 {WEBKIT}; compatible; ChatGPT-User/1.0; +https://openai.com/bot",
    f"Mozilla/5.0 {WEBKIT}; compatible; Claude-User/1.0; +Claude-User@anthropic.com)",
    f"Mozilla/5.0 {WEBKIT}; compatible; Perplexity-User/1.0; +https://perplexity.ai/perplexity-user)",
    f"Mozilla/5.0 {WEBKIT}; compatible; MistralAI-User/1.0; +https://docs.mistral.ai/robots)",
    f"Mozilla/5.0 (X11; Linux x86_64) {WEBKIT}; compatible; Google-Agent)",
    f"Mozilla/5.0 (X11; Linux x86_64) {WEBKIT}; compatible; GoogleAgent-Mariner) Chrome/142.0.0.0 Safari/537.36",
    "Mozilla/5.0 (compatible; AmazonBuyForMe; +https://www.amazon.com/)",
    "Mozilla/5.0 (compatible; Amzn-User; +https://developer.amazon.com/)",
    "DuckAssistBot/1.2; (+http://duckduckgo.com/duckassistbot.html)",
    "meta-externalfetcher/1.1 (+https://developers.facebook.com/docs/sharing/webmasters/crawler)",
    f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {CHROME} Safari/537.36; Manus-User/1.0",
    "Mozilla/5.0 (compatible; SomeNewAssistant-User/0.3; +https://assistant.example/bot)",
]
PEOPLE = [
    *(text for _, text in BROWSERS),
    f"Mozilla/5.0 (Linux; Android 10; CUBOT X30 Build/QP1A.190711.020) {CHROME} Mobile Safari/537.36",
    "Mozilla/5.0 (Linux; Cubot X30)",
    # views inside apps, and apps
    f"Mozilla/5.0 (Linux; Android 15; CPH2557 Build/AP3A.240617.008; wv) {WEBKIT} Version/4.0 Chrome/142.0 Mobile Safari/537.36 Instagram 406.0.0.58",
    f"Mozilla/5.0 (Linux; Android 16; Pixel 10 Pro; wv) {WEBKIT} Version/4.0 Chrome/146.0 Mobile Safari/537.36 MetaIAB Facebook",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148 Viber/21.0",
    f"Mozilla/5.0 (Linux; Android 9; MI 8) {WEBKIT} Chrome/63.0 Mobile Safari/537.36 SogouMSE,SogouMobileBrowser/5.17.7",
    "Shop/3.2 (iPhone; iOS 17.0; Scale/3.00)",
    "okhttp/4.12.0",
    f"Mozilla/5.0 (SMART-TV; Linux; Tizen 5.0) {WEBKIT} Version/5.0 TV Safari/537.36",
    "",
    "-",
    "Mozilla/5.0 (Windows NT 10.0) " + "bot " * LONGEST,  # no user agent
]
CLASSES: dict[str, str | None] = {
    **dict.fromkeys(CRAWLERS, "crawler"),
    **dict.fromkeys(AGENTS, "agent"),
    **dict.fromkeys(PEOPLE, None),
}


@pytest.mark.parametrize("agent", CLASSES)
def test_what_user_agents_name(agent: str) -> None:
    assert client_class_of(agent) == CLASSES[agent]


@given(
    st.text(max_size=200) | st.lists(st.sampled_from([*CLASSES, "bot", "-User/", "\0", "é"]), max_size=4).map(" ".join)
)
def test_any_text_names_a_class_or_none(text: str) -> None:
    assert client_class_of(text) in (None, "crawler", "agent")


def test_no_batch_fails_because_the_parser_does(monkeypatch: pytest.MonkeyPatch) -> None:
    import ua_parser

    def fails(text: str) -> Any:
        raise RuntimeError(text)

    client_class_of.cache_clear()
    monkeypatch.setattr(ua_parser, "parse_device", fails)
    assert client_class_of(CRAWLERS[0]) == "crawler" and client_class_of(PEOPLE[0]) is None
    client_class_of.cache_clear()


def test_the_function_in_sql_finds_the_same() -> None:
    with duckdb.connect() as con:
        devices.register(con)
        con.execute("create table texts as select unnest($texts::varchar[]) as text", {"texts": [*CLASSES, None]})
        found = con.execute(f"select text, {devices.function('client_class')}(text) from texts").fetchall()
    assert dict(found) == {**CLASSES, None: None}


@pytest.mark.parametrize("mapped", [True, False])
def test_the_row_s_own_class_wins(home: Settings, tmp_path: Path, mapped: bool) -> None:
    """And it needs no user agent."""
    rows = [(agent, own) for agent in (CRAWLERS[0], AGENTS[0], PEOPLE[0], None) for own in (None, "", "agent")]
    lines = [{"t": "view", "at": "2024-01-01", "u": n, "ua": ua, "is": own} for n, (ua, own) in enumerate(rows)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    fields = {"event_type": "t", "event_at": "at", "user_id": "u", "user_agent": "ua"} | (
        {"client_class": "is"} if mapped else {}
    )
    entry = {"files": "a.jsonl", "available_at": "event_time", "fields": fields}
    path = tmp_path / "shop.yml"
    path.write_text(yaml.safe_dump({"source": "shop", "tables": {"events": entry}}))
    load(path, data=tmp_path)
    con = lake.connect(home, read_only=True)
    found = con.execute("select client_class from lake.raw.events order by user_id::int").fetchall()
    con.close()
    assert [one or None for (one,) in found] == [
        own if own and mapped else CLASSES.get(agent) if agent else None for agent, own in rows
    ]
