"""Enqueue checks on both engines: handlers, signatures, `max_waiting`."""

from __future__ import annotations

from typing import Any, Unpack

import msgspec
import pytest

from tests.support import storing
from tests.support.configuring import with_keys
from workerd.config.model import Config
from workerd.errors import HandlerNotFound, InvalidValue, TooManyWaiting
from workerd.job_spec import JobOptions, JobSpec, NewJob, check
from workerd.operations.enqueue import KnownHandlers, admit, admit_each, checked, is_plain
from workerd.signature import Param, Signature
from workerd.store import handlers
from workerd.store.base import Store
from workerd.store.columns import JobRow

SIGNATURE = msgspec.json.encode(Signature((Param("a", "int", "int", required=True),)))


def new(handler: str, **options: Unpack[JobOptions]) -> NewJob:
    return check(JobSpec(handler=handler, **options))


def a_job(vars: dict[str, Any]) -> NewJob:
    return check(JobSpec(handler="stored", vars=vars))


def count(store: Store) -> int:
    return int(storing.value(store, "SELECT COUNT(*) FROM workerd_jobs"))


def test_one_wrong_job_rejects_all(store: Store, config: Config) -> None:
    """An unknown handler is rejected with the known ones, but those that nobody may enqueue."""
    store.run(lambda tx: handlers.seen(tx, "~webhook", None, "one"))
    with pytest.raises(HandlerNotFound, match=r"known are: beat, bounded, mail\.$"):
        store.run(lambda tx: admit(tx, [new("mail"), new("nope")], config))
    assert count(store) == 0
    assert all(one.created for one in store.run(lambda tx: admit(tx, [new("mail"), new("beat")], config)))


def test_max_waiting_counts_stored_and_new_jobs(store: Store, config: Config) -> None:
    """Also those of one call."""
    with pytest.raises(TooManyWaiting, match=r"handlers\.bounded\.max_waiting"):
        store.run(lambda tx: admit(tx, [new("bounded")] * 3, config))
    store.run(lambda tx: admit(tx, [new("bounded")] * 2, config))
    with pytest.raises(TooManyWaiting):
        store.run(lambda tx: admit(tx, [new("bounded")], config))
    assert count(store) == 2


@pytest.mark.parametrize("word", ["keep", "replace"])
def test_max_waiting_refuses_no_job_that_adds_none(store: Store, config: Config, word: str) -> None:
    """One whose unique key a waiting job has, or whose id is there already."""
    keyed = new("bounded", unique_key="k", on_conflict=word)
    named = new("bounded", id="018f3a1c-0000-7000-8000-000000000001")
    first = store.run(lambda tx: admit(tx, [keyed, named], config))
    again = store.run(lambda tx: admit(tx, [keyed, named], config))
    assert [one.created for one in again] == [False, False]
    assert [one.id for one in again] == [one.id for one in first]
    for further in ([new("bounded", unique_key="other")], [keyed, new("bounded")]):
        with pytest.raises(TooManyWaiting, match=r"handlers\.bounded\.max_waiting"):
            store.run(lambda tx, further=further: admit(tx, further, config))
    assert count(store) == 2


def test_vars_must_fit_the_stored_signature(store: Store, config: Config) -> None:
    """Unless the caller leaves that check to the attempt."""
    store.run(lambda tx: handlers.seen(tx, "stored", SIGNATURE, "one"))
    wrong = a_job({"a": "one"})
    with pytest.raises(InvalidValue, match=r"stored: vars\.a"):
        store.run(lambda tx: admit(tx, [wrong], config))
    store.run(lambda tx: admit(tx, [wrong], config, check_signatures=False))
    assert count(store) == 1


def test_jobs_of_a_batch_are_rejected_one_by_one(store: Store, config: Config) -> None:
    """Each result is at the position of its job."""
    wanted = [new("mail"), new("nope"), new("beat")]
    results = store.run(lambda tx: admit_each(tx, wanted, KnownHandlers(), config))
    assert [isinstance(result, HandlerNotFound) for result in results] == [False, True, False]
    assert count(store) == 2


def test_a_handler_that_the_cache_does_not_have_is_looked_for(store: Store, config: Config) -> None:
    """A node may have loaded it since: the cache spares queries, it refuses nothing by itself."""
    known = KnownHandlers()
    refused = store.run(lambda tx: admit_each(tx, [new("mail"), new("late")], known, config))
    assert isinstance(refused[1], HandlerNotFound)
    store.run(lambda tx: handlers.seen(tx, "late", None, "one"))
    assert known.is_recent
    admitted = store.run(lambda tx: admit_each(tx, [new("late")], known, config))
    assert [row.handler for row in admitted if isinstance(row, JobRow)] == ["late"]


def test_only_a_job_that_nothing_can_prevent_is_plain(config: Config) -> None:
    """Such a job takes one statement."""
    assert is_plain(new("mail"), config)
    assert not is_plain(new("bounded"), config)
    assert not is_plain(new("mail", unique_key="k"), config)
    assert not is_plain(new("mail", delay=1), config)


def test_a_group_is_filled_from_the_vars(config: Config) -> None:
    """By the template of the handler's configuration, unless the caller gives one."""
    grouped = with_keys(config, "mail", group="t-{tenant}")
    assert checked(JobSpec(handler="mail", vars={"tenant": "ä'7"}), grouped).group_key == "t-ä'7"
    assert checked(JobSpec(handler="mail", vars={}, group="given"), grouped).group_key == "given"
    assert checked(JobSpec(handler="beat", vars={"tenant": 7}), grouped).group_key is None
    with pytest.raises(InvalidValue, match='number in the var "tenant", got none'):
        checked(JobSpec(handler="mail"), grouped)


def test_a_handler_says_what_becomes_of_conflicts(config: Config) -> None:
    """Where the job has a unique key and says nothing itself."""
    configured = with_keys(config, "mail", on_conflict="debounce", max_delay=60.0)
    configured = with_keys(configured, "beat", unique_for=3600.0)
    job = checked(JobSpec(handler="mail", unique_key="k", delay=1), configured)
    assert (job.on_conflict, job.max_delay) == ("debounce", 60_000_000)
    job = checked(JobSpec(handler="mail", unique_key="k", on_conflict="keep"), configured)
    assert (job.on_conflict, job.max_delay) == ("keep", None)
    job = checked(JobSpec(handler="mail", unique_key="k", on_conflict="debounce", delay=1), configured)
    assert (job.on_conflict, job.max_delay) == ("debounce", 60_000_000)
    assert checked(JobSpec(handler="mail"), configured).on_conflict == "keep"
    assert checked(JobSpec(handler="beat", unique_key="k"), configured).unique_for == 3_600_000_000
    with pytest.raises(InvalidValue, match="requires a delay"):
        checked(JobSpec(handler="mail", unique_key="k"), configured)


@pytest.mark.parametrize("word", ["keep", "follow", "replace"])
def test_max_delay_of_a_handler_bounds_jobs_that_debounce_themselves(config: Config, word: str) -> None:
    """Whatever the handler says of all others, which it does not touch."""
    configured = with_keys(config, "mail", on_conflict=word, max_delay=60.0)
    job = checked(JobSpec(handler="mail", unique_key="k", on_conflict="debounce", delay=1), configured)
    assert (job.on_conflict, job.max_delay) == ("debounce", 60_000_000)
    job = checked(JobSpec(handler="mail", unique_key="k", delay=1), configured)
    assert (job.on_conflict, job.max_delay) == (word, None)


def test_cached_handlers_admit_the_cached_signatures(store: Store, config: Config) -> None:
    """Vars are checked against the cached signature."""
    known = KnownHandlers()
    assert not known.is_recent
    assert not known.admits(a_job({}), config)
    store.run(lambda tx: handlers.seen(tx, "stored", SIGNATURE, "one"))
    store.read(known.query)
    assert known.is_recent
    assert known.admits(a_job({"a": 1}), config)
    assert not known.admits(a_job({}), config)
    assert not known.admits(new("nope"), config)
