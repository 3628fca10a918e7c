"""How many replicas there are to be follows how long requests wait, and nothing else."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from vggdeploy.errors import UsageError
from vggdeploy.serve import on_ray
from vggdeploy.serve.queue_time import Load, wanted_replicas
from vggdeploy.serve.settings import SETTINGS_VARIABLE, Settings, known_settings
from vggdeploy.system.optional import installed


def context(queue: list[float], busy: list[float], *, target: int | None = None) -> Any:
    count = len(queue)
    told = {"queue_time": dict(enumerate(queue)), "busy": dict(enumerate(busy))}
    return SimpleNamespace(
        current_num_replicas=count, target_num_replicas=count if target is None else target, aggregated_metrics=told
    )


@pytest.mark.parametrize(
    ("queue", "busy", "wanted"),
    [
        ([0.2], [0.95], 1),  # busy, and nobody waits
        ([1.5], [0.5], 2),  # they wait
        ([50.0], [1.0], 2),  # however long: twice as many at once
        ([1.2, 1.2, 1.2], [1.0] * 3, 4),
        ([0.0, 0.0], [0.2, 0.2], 1),  # one has room for both
        ([0.0, 0.0], [0.4, 0.4], 2),  # it has not
        ([0.0, 0.0, 0.0, 0.0], [0.01] * 4, 3),  # one at a time
        ([0.0], [0.0], 1),
        ([3.0, 0.0], [1.0, 0.0], 3),  # on the mean of all: a router that has forgotten one is no reason to have fewer
    ],
)
def test_the_number_of_replicas(queue: list[float], busy: list[float], wanted: int) -> None:
    assert wanted_replicas(context(queue, busy))[0] == wanted


def test_while_one_starts_nothing_is_taken_back_and_nothing_is_added_twice() -> None:
    assert wanted_replicas(context([0.1], [0.1], target=2))[0] == 2
    assert wanted_replicas(context([1.5], [1.0], target=2))[0] == 2


def test_where_nobody_has_told_anything_it_stays_as_it_is() -> None:
    for told in ({}, None):
        silent = SimpleNamespace(current_num_replicas=1, target_num_replicas=3, aggregated_metrics=told)
        assert wanted_replicas(silent)[0] == 3


def test_a_replica_tells_what_was_waited_since_it_was_last_asked() -> None:
    now = [0.0]
    load = Load(0.1, clock=lambda: now[0])
    load.answered(0.1)
    load.answered(0.3)
    load.computed(1.0)
    now[0] = 4.0
    assert load.told() == {"queue_time": pytest.approx(2.0), "busy": pytest.approx(0.25)}
    now[0] = 8.0
    assert load.told() == {"queue_time": 0.0, "busy": 0.0}


def test_a_request_that_waits_and_is_never_answered_counts() -> None:
    load = Load(0.1)
    load.answered(0.001)
    assert load.told(longest=5.0)["queue_time"] == pytest.approx(50)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"min_workers": 3, "workers": 2}, "--min-workers is 3"),
        ({"min_workers": 0}, "--min-workers is 0"),
        ({"queue_time_ms": 0.0}, "--queue-time is 0.0 ms"),
        ({"queue_time_ms": math.nan}, "--queue-time is nan ms"),
        ({"quue": 3}, "'quue' is no setting of the server"),
    ],
)
def test_bounds_that_cannot_be_kept_and_settings_that_there_are_not_are_refused(
    given: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        known_settings("bundle", given)


@pytest.mark.skipif(not installed("ray"), reason="pip install 'vggdeploy[ray]'")
@pytest.mark.filterwarnings("ignore")  # of what Ray imports
def test_ray_takes_the_policy_and_waits_before_it_acts() -> None:
    """Ray's own context, policy and delays, of the version that is installed."""
    from ray.serve.autoscaling_policy import _apply_autoscaling_config
    from ray.serve.config import AutoscalingConfig, AutoscalingContext

    config = AutoscalingConfig(
        min_replicas=1, max_replicas=4, upscale_delay_s=5, downscale_delay_s=60,
        policy={"policy_function": "vggdeploy.serve.queue_time:wanted_replicas"},
    )  # fmt: skip
    policy = _apply_autoscaling_config(config.policy.get_policy())
    fields: dict[str, Any] = dict.fromkeys(
        ("deployment_id", "deployment_name", "app_name", "last_scale_up_time", "last_scale_down_time", "raw_metrics")
    )
    told = {"queue_time": {"a": 3.0}, "busy": {"a": 1.0}}
    state: dict[str, Any] = {}
    asked = AutoscalingContext(
        **fields, current_num_replicas=1, target_num_replicas=1, running_replicas=["a"], total_num_requests=1.0,
        total_queued_requests=0.0, aggregated_metrics=told, capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=4, policy_state=state, current_time=0.0, config=config,
    )  # fmt: skip
    assert policy(asked)[0] == 1  # not before the delay
    config = config.model_copy(update={"upscale_delay_s": 0.0})
    asked.config = config
    assert policy(asked)[0] == 2


def test_a_replica_computes_with_as_many_threads_as_it_asks_ray_for_cores(
    bundle_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack: without --threads each would have as many threads as its machine has cores, and one core."""

    class Begun(Exception):
        pass

    def cluster(address: str, variables: dict[str, str]) -> None:
        raise Begun(variables[SETTINGS_VARIABLE])

    monkeypatch.setattr(on_ray, "ray_module", lambda *parts: None)
    monkeypatch.setattr(on_ray, "cluster", cluster)
    for given, threads in ((None, 1), (2, 2)):
        with pytest.raises(Begun) as begun:
            on_ray.serve_on_ray(Settings(bundle=str(bundle_dir), threads=given), "local", on_start=print)
        assert msgspec.json.decode(str(begun.value), type=Settings).threads == threads
