"""Every kind of fault, once: the shortened run of faults.py, which says what is tried and promised.

The environment names the binary: ROOMKEYD_FAULTS (`make test` sets it). The same faults every time;
`make torture` tries them at each use of each call.
"""

import collections

import pytest

import faults


@pytest.fixture(name="plan", scope="module")
def _plan(tmp_path_factory):
    plan = faults.Plan(tmp_path_factory.mktemp("faults"))
    plan.measure()
    plan.of_call = collections.defaultdict(list)
    for run in faults.shortened(plan.singles() + plan.together()):
        plan.of_call[run[1][-1].call].append(run)
    return plan


@pytest.mark.parametrize("call", faults.SINGLE)
def test_a_call_that_fails_harms_nobody(plan, call):
    for is_birth, some in plan.of_call[call]:
        plan.live(some, is_birth)
    assert plan.injected[call] > 0, f"{call} never failed"
