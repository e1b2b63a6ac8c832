"""`[webhooks.NAME]`: which events are sent where."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from workerd.config import address_validators as addresses
from workerd.config import text_validators as texts
from workerd.config import validators as v
from workerd.config.config_value import ConfigValue

WebhookEvent = Literal["failure", "request_failed", "new_error", "quarantine"]

WEBHOOK_HANDLER = "~webhook"
"""The reserved handler, and its pool, that delivers webhooks; names with ~ are no user's."""


class WebhookConfig(ConfigValue, frozen=True):
    """`[webhooks.NAME]`: an address that events are sent to, by jobs of the reserved handler `~webhook`."""

    url: Annotated[str, addresses.http_url] = ""
    """Where events are posted as JSON. Required. Redirects are not followed."""
    secret_file: Annotated[str, texts.credential] = ""
    """File with the secret that signs each delivery, in the header Workerd-Signature. Required; a newline at
    its end does not count."""
    on: Annotated[tuple[WebhookEvent, ...], v.list_of(v.choice(*get_args(WebhookEvent)), "events")] = (
        "failure",
        "request_failed",
        "new_error",
        "quarantine",
    )
    """Events: a job that has failed for good, a request that has failed, a group of failures that is new or
    came back, a pool that is quarantined."""
    handlers: Annotated[tuple[str, ...], v.list_of(texts.name, "names of handlers")] = ("*",)
    """Handlers whose failures, new errors and quarantines are sent; "*" is a wildcard. request_failed is
    sent whatever the handlers."""
    allow_private: Annotated[bool, v.boolean] = False
    """true: the address may be private, loopback or link-local. Checked at each delivery, once resolved."""
