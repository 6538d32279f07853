"""session_features: one row per session."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from features import AMOUNT, MONEY, NEVER, UNPRICED, Feature, Project

KEYS: Final = {"session_id": "The session (fct_sessions)."}


def features(project: Project) -> Iterator[Feature]:
    yield Feature(
        "customer_id",
        "varchar",
        "The customer, as the session's login, or else its visitor, was linked at as_of",
        "label",
        range=None,
    )
    yield Feature("started_at", "timestamp", "The moment of its first event, UTC", "moment", range=None)
    yield Feature("last_event_at", "timestamp", "The moment of its last event, UTC", "moment", range=None)
    yield Feature("length_seconds", "bigint", "Whole seconds from its first event to its last", "seconds")
    yield Feature("seconds_since_last_event", "double", "Seconds since its last event", "seconds")
    gap = "Whether its last event is longer ago than a session may pause (session_gap_minutes)"
    yield Feature("is_over", "boolean", gap, "flag", range=None)

    yield Feature("events", "bigint", "Events of any kind", "events", range=(1, None))
    for name, (data_type, meaning, unit) in project.measures("session").items():
        yield Feature(name, data_type, meaning, unit, null_means=UNPRICED if unit == MONEY else NEVER)
    yield Feature("orders", "bigint", "Distinct orders", "orders")
    yield Feature("has_order", "boolean", "Whether something was bought", "flag", range=None)
    yield Feature("is_bounced", "boolean", "Whether it has one event only", "flag", range=None)
    stayed = "time from a product view to the next event, of views with a next event"
    for name, which in (("mean", "Mean"), ("max", "Longest")):
        yield Feature(f"dwell_seconds_{name}", "double", f"{which} {stayed}", "seconds", null_means="no such view")

    yield Feature("distinct_products", "bigint", "Distinct products of its events", "products")
    yield Feature(
        "distinct_categories", "bigint", "Distinct categories of its events, with or without a product", "categories"
    )
    yield Feature("distinct_brands", "bigint", "Distinct brands of its products", "brands")
    yield Feature(
        "views_per_product",
        "double",
        "Product views per distinct product",
        "ratio",
        null_means="no event about a product",
    )
    last = "of its last events, up to session_last_k of them, the newest first, each once"
    yield Feature("last_products", "varchar[]", f"The products {last}; empty where there is none", "list", range=None)
    yield Feature(
        "last_categories", "varchar[]", f"The categories {last}; empty where there is none", "list", range=None
    )

    for name, what in (("events", "Events"), ("views", "Product views")):
        yield Feature(
            f"{name}_before_first_cart_add",
            "bigint",
            f"{what} before the first addition to the cart; all, where nothing was added",
            "events",
        )
        yield Feature(
            f"{name}_after_first_cart_add", "bigint", f"{what} after the first addition to the cart", "events"
        )
    yield Feature(
        "seconds_to_first_cart_add",
        "bigint",
        "Whole seconds from its first event to the first addition to the cart",
        "seconds",
        null_means="nothing was added to the cart",
    )
    cart = "put in the cart less what was taken out, at least 0; what was bought is not taken off"
    yield Feature("cart_value", AMOUNT, f"Money of what was {cart}", MONEY, null_means=UNPRICED)
    yield Feature("cart_units", AMOUNT, f"Units of what was {cart}; a missing quantity counts as one", "units")

    unknown = "the first event does not say"
    for name, what in (
        ("entry_page", "Page of its first event"),
        ("entry_referrer", "Address that led to its first event"),
        ("entry_campaign", "utm_campaign of its first event's page, or else its campaign"),
    ):
        is_label = name == "entry_campaign"
        yield Feature(name, "varchar", what, "label", null_means=unknown, range=None, categorical=is_label)
    yield Feature(
        "entry_channel",
        "varchar",
        "How it came, by the tags of its first event's page, its campaign and its referrer: direct, organic search, paid search, "
        "organic social, paid social, display, paid other, email, affiliates, ai assistant, referral, or campaign where only a campaign is known",
        "label",
        range=None,
        categorical=True,
    )
    yield Feature(
        "visitor_class",
        "varchar",
        "Who came: human, assistant_referred where an AI assistant led a person there, or agent where an assistant came itself",
        "label",
        range=None,
        categorical=True,
    )
    yield Feature(
        "device", "varchar", "Device of its first event", "label", null_means=unknown, range=None, categorical=True
    )
    yield Feature(
        "country", "varchar", "Country of its first event", "label", null_means=unknown, range=None, categorical=True
    )
    yield Feature(
        "day_part",
        "varchar",
        "When it began: night from 0 o'clock in the shop's time zone, morning from 6, afternoon from 12, evening from 18",
        "label",
        range=None,
        categorical=True,
    )
    yield Feature(
        "is_weekend", "boolean", "Whether it began on Saturday or Sunday, in the shop's time zone", "flag", range=None
    )
