"""Names of attributes: those of OpenTelemetry's conventions for messaging, and those of workerd."""

from __future__ import annotations

from collections.abc import Mapping

SYSTEM = "messaging.system"
DESTINATION = "messaging.destination.name"
OPERATION = "messaging.operation.name"
OPERATION_TYPE = "messaging.operation.type"
MESSAGE_ID = "messaging.message.id"
CONVERSATION_ID = "messaging.message.conversation_id"
BATCH_COUNT = "messaging.batch.message_count"
ERROR_TYPE = "error.type"
EXCEPTION = "exception"
EXCEPTION_TYPE = "exception.type"
EXCEPTION_MESSAGE = "exception.message"
EXCEPTION_STACK = "exception.stacktrace"
ATTEMPT = "workerd.attempt"
REASON = "workerd.reason"
QUEUE_MS = "workerd.queue_ms"
CREATED = "workerd.created"
STEP = "workerd.step"
DROPPED_SPANS = "workerd.dropped_spans"
MALFORMED_CONTEXT = "workerd.malformed_traceparent"

WORKERD = "workerd"


def of_operation(name: str, kind: str, handler: str) -> dict[str, str | int | bool]:
    """What each span of a job has; vars and meta are in none."""
    found: dict[str, str | int | bool] = {SYSTEM: WORKERD, OPERATION: name, OPERATION_TYPE: kind}
    if handler:
        found[DESTINATION] = handler
    return found


Attributes = Mapping[str, str | int | bool]
