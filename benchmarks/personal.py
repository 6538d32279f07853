"""What it costs to hash and drop personal data: CPU time of `finegrain load` of the same events with and without it, in turns.

python benchmarks/personal.py [--events N] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from orchestration.config.settings import Settings
from orchestration.ingest.load import load

KEEP = dict.fromkeys(("email", "phone", "name", "address", "ip", "user_agent"), "keep")
EVENT = {
    "type": "view_item", "at": "2026-01-01T10:00:00Z", "visitor": "a1b2c3d4e5f6", "session": "s1", "product": "p-100", "category": "Shoes > Running",
    "quantity": "1", "price": "19.99", "currency": "EUR", "page": "https://shop.example/p/100?ref=home", "referrer": "https://search.example/",
    "country": "DE", "consent": "granted", "screen": "390x844", "language": "de-DE", "viewport": "390x664", "experiment": "list-b", "position": 7,
}  # fmt: skip
AGENTS = [
    f"Mozilla/5.0 (iPhone; CPU iPhone OS {n} like Mac OS X) AppleWebKit/605.1.15 Version/17.{n} Mobile/15E148 Safari/604.1"
    for n in range(200)
]
FIELDS = {
    "event_id": "id",
    "event_type": "type",
    "event_at": "at",
    "user_id": "user",
    "anonymous_id": "visitor",
    "product_id": "product",
    "page": "page",
}


def events(kind: str, count: int) -> list[dict[str, Any]]:
    """Events with nothing personal, with a user agent, or with a user agent, an address and an e-mail address as the login id."""
    found = []
    for n in range(count):
        event: dict[str, Any] = {**EVENT, "id": f"e{n}", "user": f"u{n % 5000}"}
        if kind != "nothing":
            event["user_agent"] = AGENTS[n % len(AGENTS)]
        if kind == "all":
            event |= {"user": f"user{n % 5000}@shop.example", "ip": f"198.51.100.{n % 250}"}
        found.append(event)
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print("| events with | CPU seconds, kept | CPU seconds, hashed or dropped | ratio |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        for kind in ("nothing", "user agents", "all"):
            lines = "\n".join(json.dumps(event) for event in events(kind, given.events)) + "\n"
            (here / "events.jsonl").write_text(lines)
            seconds: dict[str, list[float]] = {"kept": [], "default": []}
            fields = FIELDS | ({} if kind == "nothing" else {"user_agent": "user_agent"})
            for round_ in range(given.rounds):
                for how, policy in (("kept", {"personal": KEEP}), ("default", {})):
                    mapping = here / f"{how}.yml"
                    entry = {"files": "events.jsonl", "available_at": "event_time", "fields": fields}
                    mapping.write_text(yaml.safe_dump({"source": "shop", **policy, "tables": {"events": entry}}))
                    where = Settings.below(here / f"{kind}-{how}-{round_}".replace(" ", "-"), here / "extensions")
                    began = time.process_time()
                    report = load(mapping, data=here, where=where)
                    seconds[how].append(time.process_time() - began)
                    assert report.rows == given.events
            kept, default = (statistics.median(seconds[how]) for how in ("kept", "default"))
            print(f"| {kind} | {kept:.2f} | {default:.2f} | {default / kept:.2f} |", flush=True)


if __name__ == "__main__":
    main()
