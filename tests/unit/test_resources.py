"""Plans are refused before Ray would wait for ever: a worker lies on one node, whatever the sum over nodes says."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import PlatformError
from pipeline.base.resources import (
    ClusterPlan,
    Node,
    check,
    check_after_loss,
    places,
    scoring_plan,
    training_plan,
    waiting,
)


def nodes(*cpus: float) -> list[Node]:
    return [{"CPU": count} for count in cpus]


def test_a_plan_that_fits_by_sum_but_on_no_node_is_refused_with_the_numbers() -> None:
    with pytest.raises(PlatformError, match=r"train's 3 CPUs a worker fit on no node \(2 nodes of 2 CPUs\); lower"):
        check(ClusterPlan("train", 1, 3.0), nodes(2, 2))
    with pytest.raises(PlatformError, match=r"needs 2 workers of 3 CPUs, this Ray has room for 1 \(1 node of 5 CPUs, "):
        check(ClusterPlan("score", 2, 3.0), nodes(5, 2))
    with pytest.raises(PlatformError, match=r"score needs 4 workers of 2 CPUs, this Ray has room for 2 \(1 node of 4"):
        check(ClusterPlan("score", 4, 2.0), nodes(4))


def test_a_gpu_and_its_worker_s_cpus_must_be_on_one_node() -> None:
    apart: list[Node] = [{"CPU": 8.0}, {"CPU": 0.5, "GPU": 1.0}]
    with pytest.raises(PlatformError, match=r"1 CPU and 1 GPU a worker fit on no node \(1 node of 8 CPUs, 1 node of"):
        check(ClusterPlan("evaluate", 1, 1.0, 1.0), apart)
    check(training_plan(apart), apart)


def test_a_task_beside_the_workers_needs_room_on_some_node() -> None:
    plan = ClusterPlan("train", 3, 1.0, beside_cpus=0.5)
    check(plan, nodes(2, 1.5))
    with pytest.raises(PlatformError, match=r"3 workers of 1 CPU beside a task of 0.5 CPUs that decodes, .* for 2 "):
        check(plan, nodes(2, 1))


def test_after_a_loss_the_way_on_is_said() -> None:
    plan = ClusterPlan("train", 2, 1.0)
    check_after_loss(plan, nodes(1, 1), "again")
    with pytest.raises(PlatformError, match=r"a node was lost: train needs 2 .* room for 1 \(1 node of 1 CPU\); again"):
        check_after_loss(plan, nodes(1), "again")
    with pytest.raises(PlatformError, match="no nodes"):
        check_after_loss(plan, [], "again")


def test_of_workers_from_fewest_to_most_the_fewest_must_find_room() -> None:
    plan = training_plan(nodes(2, 2), workers=8, fewest=2)
    assert (plan.workers, plan.cpus_per_worker) == (8, 1.0)  # as many of a core each as there will be cores
    check(plan, nodes(2, 2))
    check_after_loss(plan, nodes(2), "again")
    with pytest.raises(PlatformError, match=r"train needs 2 workers of 1 CPU, this Ray has room for 1 "):
        check_after_loss(plan, nodes(1), "again")
    assert waiting(plan, {"CPU": 2.0}) is None
    assert waiting(plan, {"CPU": 1.0}) == ("train waits for room: it needs 2 CPUs, others leave 1 CPU at the moment")


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 64])
def test_training_takes_two_workers_where_there_are_two_cores(cpus: int) -> None:
    assert training_plan(nodes(cpus)).workers == (1 if cpus == 1 else 2)


_NODES = st.lists(
    st.fixed_dictionaries({"CPU": st.sampled_from([0, 1, 1.5, 2, 4, 8])}, optional={"GPU": st.integers(0, 4)}),
    min_size=1, max_size=4,
)  # fmt: skip


@given(_NODES)
def test_the_chosen_training_plan_always_fits(found: list[Node]) -> None:
    hosts_gpus = [node for node in found if node.get("GPU")]
    if any(node["CPU"] == 0 for node in hosts_gpus) or not any(node["CPU"] for node in found):
        return  # a worker needs some CPU on its node
    check(training_plan(found), found)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=3),
    st.integers(1, 3), st.integers(0, 1), st.integers(0, 2),
)  # fmt: skip
def test_places_are_as_many_as_the_best_packing_holds(
    sizes: list[tuple[int, int]], cpus: int, gpus: int, beside: int
) -> None:
    """Against trying every way to lay workers and the task beside them onto the nodes."""
    found: list[Node] = [{"CPU": cpu, "GPU": gpu} for cpu, gpu in sizes]
    best = 0
    for home, counts in itertools.product(range(len(sizes)), itertools.product(range(6), repeat=len(sizes))):
        left = [
            (cpu - count * cpus - beside * (at == home), gpu - count * gpus)
            for at, ((cpu, gpu), count) in enumerate(zip(sizes, counts, strict=True))
        ]
        if min(itertools.chain.from_iterable(left)) >= 0:
            best = max(best, sum(counts))
    assert places(ClusterPlan("score", 1, cpus, gpus, beside_cpus=beside), found) == best


@pytest.mark.parametrize(
    ("free", "said"),
    [
        ({"CPU": 2.0}, None),
        ({}, None),
        ({"memory": 1.0}, "train waits for room: it needs 2 CPUs, others leave 0 CPUs at the moment"),
        ({"CPU": 1.5}, "train waits for room: it needs 2 CPUs, others leave 1.5 CPUs at the moment"),
    ],
)
def test_a_plan_that_others_leave_no_room_for_says_what_it_waits_for(free: Node, said: str | None) -> None:
    assert waiting(ClusterPlan("train", 2, 1.0), free) == said


def test_scoring_takes_every_core_or_shares_every_gpu_and_the_cores_beside_it() -> None:
    assert scoring_plan(nodes(4, 3)) == ClusterPlan("score", 7, 1.0)
    assert scoring_plan(nodes(4, 3), cpus_per_worker=2.0) == ClusterPlan("score", 3, 2.0)
    assert scoring_plan([], 5) == ClusterPlan("score", 5, 1.0)
    one: list[Node] = [{"CPU": 16.0, "GPU": 1.0}]
    assert scoring_plan(one, use_gpu=True) == ClusterPlan("score", 4, 3.0, 0.25)  # a core is left to others
    assert scoring_plan(one, 1, use_gpu=True) == ClusterPlan("score", 1, 15.0, 1.0)
    assert scoring_plan(one, 3, use_gpu=True) == ClusterPlan("score", 3, 5.0, 0.3333)
    assert scoring_plan(one, 20, use_gpu=True) == ClusterPlan("score", 20, 0.75, 0.05)
    assert scoring_plan(one, None, 8.0, use_gpu=True) == ClusterPlan("score", 1, 8.0, 1.0)
    assert scoring_plan([*one, *one, *nodes(64)], use_gpu=True) == ClusterPlan("score", 8, 3.0, 0.25)
    assert scoring_plan([{"CPU": 2.0, "GPU": 1.0}], use_gpu=True) == ClusterPlan("score", 1, 1.0, 1.0)
    assert scoring_plan([{"CPU": 2.0, "GPU": 4.0}], use_gpu=True) == ClusterPlan("score", 4, 0.25, 1.0)
    uneven: list[Node] = [{"CPU": 65.0, "GPU": 1.0}, {"CPU": 5.0, "GPU": 1.0}]
    assert scoring_plan(uneven, use_gpu=True) == ClusterPlan("score", 8, 1.0, 0.25)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 64), st.integers(0, 8)), min_size=1, max_size=4),
    cpus_per_worker=st.none() | st.sampled_from([0.1, 0.5, 1.0, 3.0, 8.0]),
)
def test_a_scoring_plan_of_no_number_of_workers_fits_where_one_fits(
    sizes: list[tuple[int, int]], cpus_per_worker: float | None
) -> None:
    cluster: list[Node] = [{"CPU": float(cpus), "GPU": float(gpus)} for cpus, gpus in sizes]
    plan = scoring_plan(cluster, None, cpus_per_worker, use_gpu=True)
    if places(plan, cluster):
        check(plan, cluster)
    else:  # no GPU, or too few cores beside each for what was asked
        assert all(gpus == 0 or (cpus_per_worker or 0) > cpus for cpus, gpus in sizes)


@given(gpus=st.integers(1, 8), cores=st.integers(1, 64), count=st.integers(1, 3), workers=st.integers(1, 60))
def test_any_number_of_workers_finds_room_on_equal_nodes(gpus: int, cores: int, count: int, workers: int) -> None:
    equal: list[Node] = [{"CPU": float(cores), "GPU": float(gpus)}] * count
    check(scoring_plan(equal, workers, use_gpu=True), equal)


def test_without_a_gpu_a_plan_for_one_is_refused_not_waited_for() -> None:
    with pytest.raises(PlatformError, match="GPU"):
        check(scoring_plan(nodes(8), use_gpu=True), nodes(8))
