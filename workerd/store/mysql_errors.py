"""The error codes of MySQL, MariaDB and their kin by what they mean for a transaction, as data."""

from __future__ import annotations

from workerd.errors import StoreAway, StoreBusy, StoreError, StoreRefused
from workerd.store.session import LockLost

LOCKS = frozenset({
    1205,  # lock wait timeout: rolls back the statement only, so the whole transaction is rolled back
    1213,  # deadlock, or a lost certification on Galera
    1020,  # MariaDB 11: the row changed since the snapshot
    1412,  # the table's definition changed under the transaction
    3101,  # Group Replication: certification lost
})  # fmt: skip

BUSY = frozenset({1317, 1969, 3024})  # killed, or over its time limit: the server itself answers

REFUSED = frozenset({
    1022, 1062, 1169, 1557, 1586, 1761, 1762, 1859,  # a unique key
    1216, 1217, 1451, 1452,                          # a foreign key
    3819, 4025,                                      # a CHECK of MySQL, of MariaDB
    1643, 1644,                                      # SIGNAL of a trigger
    1526, 1591, 1748,                                # no partition for the value
    1048, 1138, 1263, 1364,                          # NULL, or no value
    1118, 1153, 1162, 1301, 1406,                    # too long, or too large
    1264, 1265, 1292, 1366, 1367, 1411, 1441, 1525, 1690, 3751, 3752,  # truncated, out of range, wrong type
    1300, 1365, 1416,                                # invalid characters, division by zero, geometry
    3140, 3141, 3142, 3143, 3144, 3146, 3147, 3149, 3150, 3151, 3152, 3153, 3154, 3155, 3156, 3157, 3158,
    4036, 4037, 4038, 4040, 4041, 4042, 4043, 4044,  # JSON of MySQL, of MariaDB
})  # fmt: skip
"""What is known to be the fault of a row's values. Every other code is the state of the store: new servers,
proxies and plugins bring codes that nobody listed, and a good outcome must survive them."""

NO_ANSWER = frozenset({
    0,                                              # the driver's own error
    2002, 2003, 2005, 2006, 2013, 2014, 2026, 2055,  # not connected, or no longer
    1053, 1079, 1158, 1159, 1160, 1161, 1927, 3169, 4031,  # the server shuts down, or ended the connection
})  # fmt: skip
"""The connection was not made, or broke: nothing is known of what the server would answer."""

SERVER_READ_ONLY = frozenset({1290, 1836})
READ_ONLY = SERVER_READ_ONLY | frozenset({1036, 1792, 3989})
"""A server, a session, an instance or a schema that takes no writes."""

NOTHING_DONE = READ_ONLY | frozenset({
    1037, 1038, 1040, 1041, 1044, 1045, 1046, 1047, 1049, 1054, 1114, 1142, 1143, 1146, 1203, 1226, 1698,
    2006, 3032, 4031,
})  # fmt: skip
"""Of the answers to a single statement: nothing was sent, or it was refused before anything was done."""

NOT_COMMITTED = frozenset({1047, 1290, 1792, 1836, 3989, 4031})
"""Of the answers to COMMIT: the transaction was refused as a whole."""

TOO_LARGE = 1153
UNREACHABLE = 2003
ERROR_DURING_COMMIT = 1180
_LOST_CERTIFICATION = "error 149"
"""The storage engine's number for a deadlock, in the text of ERROR_DURING_COMMIT."""


def classify(code: int, message: str) -> StoreError:
    """An error of the server or the driver as ours; `code` 0 if it has none."""
    if code in LOCKS or (code == ERROR_DURING_COMMIT and _LOST_CERTIFICATION in message):
        return LockLost(message, code)
    if code in BUSY:
        return StoreBusy(message, code)
    if code in REFUSED:
        return StoreRefused(message, code)
    return StoreAway(message, code, answered=code not in NO_ANSWER)
