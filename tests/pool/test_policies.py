"""The effective policy of a claim, and the outcome under it."""

from __future__ import annotations

import pytest

from tests.support.worker import claim_of, pool_of
from workerd.config.model import Config
from workerd.config.schedule_config import ScheduleConfig
from workerd.config.workflow_config import WorkflowConfig, WorkflowJob
from workerd.job import Status
from workerd.outcome import Reason, RunResult
from workerd.pool.policies import Policies
from workerd.pool.worker_messages import HandlerSpec

POOL = pool_of(add="m:add")
RAISED = RunResult(serial=1, kind="raised", classes=("m.Busy", "builtins.Exception"), error="Busy")


def test_options_of_the_decorator_apply_once_the_handler_is_loaded() -> None:
    """Exception classes are matched by the paths that their names denote."""
    policies = Policies(Config(), POOL)
    assert policies.decide(claim_of("add"), RAISED).status is Status.RETRY
    policies.learn([HandlerSpec("add", {"fail_on": ["Busy"]}, None, {"Busy": "m.Busy"})])
    assert policies.decide(claim_of("add"), RAISED).status is Status.FAILURE


def test_a_handler_of_another_pool_has_no_policy() -> None:
    """Its claims are released instead."""
    policies = Policies(Config(), POOL)
    assert "add" in policies
    assert "other" not in policies
    with pytest.raises(KeyError):
        policies.of(claim_of("other"))


def test_an_attempt_that_was_being_cancelled_is_not_retried() -> None:
    """It ends as cancelled unless it had completed."""
    policies = Policies(Config(), POOL)
    outcome = policies.decide(claim_of("add"), RAISED, cancelled=True)
    assert (outcome.status, outcome.reason, outcome.next) == (Status.CANCELLED, Reason.CANCELLED, None)
    completed = policies.decide(claim_of("add"), RunResult(serial=1, kind="returned"), cancelled=True)
    assert completed.status is Status.COMPLETED


def test_a_job_of_a_recurring_workflow_is_not_retried() -> None:
    """The next run of the workflow is its retry."""
    recurring = WorkflowConfig(
        name="loop", jobs=(WorkflowJob(name="a", handler="add"),), schedule=ScheduleConfig(cooler=60.0)
    )
    policies = Policies(Config(workflows={"loop": recurring}), POOL)
    assert policies.decide(claim_of("add", workflow="loop"), RAISED).status is Status.FAILURE
    assert policies.decide(claim_of("add", workflow="other"), RAISED).status is Status.RETRY
