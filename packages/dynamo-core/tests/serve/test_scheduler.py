import asyncio
import os
import signal

import psutil
import pytest

from dynamo.errors import ConfigError, EngineError
from dynamo.protocols.scheduling import ComponentSpec
from dynamo.serve.scheduler import LocalScheduler

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def states(scheduler):
    return {c.name: [r.state for r in c.replicas] for c in await scheduler.status()}


async def pids(scheduler, name="worker"):
    return [r.pid for c in await scheduler.status() if c.name == name for r in c.replicas]


async def test_components_become_ready_and_close_leaves_nothing(scheduler, component, alive, tmp_path):
    await scheduler.apply([component("frontend"), component("worker", replicas=2)])
    await scheduler.wait_ready()
    assert await states(scheduler) == {"frontend": ["ready"], "worker": ["ready", "ready"]}
    started = await pids(scheduler) + await pids(scheduler, "frontend")
    assert len(set(started)) == 3
    assert all(os.getpgid(pid) == pid for pid in started)
    await scheduler.close()
    await scheduler.close()
    assert not any(alive(pid) for pid in started)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["lock"]


async def test_replicas_get_the_components_environment_and_own_ports(scheduler, component, output):
    flags = ("--print-env", "DYN_SYSTEM_PORT", "--print-env", "DYN_SYSTEM_HOST", "--print-env", "COLOUR")
    env = {"COLOUR": "blue", "DYN_SYSTEM_PORT": "9090", "DYN_SYSTEM_HOST": "0.0.0.0"}
    await scheduler.apply([component("worker", *flags, replicas=2, env=env)])
    await scheduler.wait_ready()
    ports = {text for _, text in output.lines if text.startswith("DYN_SYSTEM_PORT")}
    assert len(ports) == 2
    assert "DYN_SYSTEM_PORT 9090" not in ports
    assert ("worker-1", "COLOUR blue") in output.lines
    assert ("worker-0", "DYN_SYSTEM_HOST 127.0.0.1") in output.lines


async def test_killed_replica_is_started_again(scheduler, component, output, until):
    await scheduler.apply([component()])
    await scheduler.wait_ready()
    [first] = await pids(scheduler)
    os.kill(first, signal.SIGKILL)

    async def replica():
        return (await scheduler.status())[0].replicas[0]

    while (now := await replica()).state != "ready" or now.restarts == 0:
        await asyncio.sleep(0.02)
    assert now.pid not in (None, first)
    assert output.events == ["worker was ended by SIGKILL; starts again in 0.05 s"]


async def test_death_of_a_replica_ends_what_it_started(scheduler, component, output, until, alive):
    await scheduler.apply([component("worker", "--child")])
    await scheduler.wait_ready()
    [first] = await pids(scheduler)
    await until(lambda: output.lines, "the replica names its child")
    grandchild = int(output.lines[0][1].split()[1])
    assert alive(grandchild)
    os.kill(first, signal.SIGKILL)
    await until(lambda: not alive(grandchild), "the grandchild ends")
    await until(lambda: len(output.lines) == 2, "the replica runs again although its child held the pipe")


async def test_replica_that_ignores_sigterm_is_killed_after_its_grace(scheduler, component, alive):
    await scheduler.apply([component("worker", "--ignore-term", "--child", stop_grace_seconds=0.2)])
    await scheduler.wait_ready()
    [pid] = await pids(scheduler)
    family = [pid, *(child.pid for child in psutil.Process(pid).children())]
    assert len(family) == 2
    await scheduler.close()
    assert not any(alive(member) for member in family)


async def test_kill_ends_a_slow_stop(scheduler, component, until):
    await scheduler.apply([component("worker", "--ignore-term", stop_grace_seconds=600)])
    await scheduler.wait_ready()
    closing = asyncio.create_task(scheduler.close())
    while (await states(scheduler))["worker"] != ["stopping"]:
        await asyncio.sleep(0.02)
    scheduler.kill()
    await asyncio.wait_for(closing, 10)


async def test_crash_loop_is_given_up_with_the_last_lines(scheduler, component, output):
    await scheduler.apply([component("frontend"), component("worker", "--print", "no such tensor", "--exit", "1")])
    with pytest.raises(EngineError) as caught:
        await scheduler.wait_ready()
    assert caught.value.message == "worker did not start: ended with exit code 1 again and again before it was ready"
    assert caught.value.hint == "its last lines were:\n  no such tensor\n  no such tensor"
    assert (await states(scheduler))["worker"] == ["failing"]
    assert output.events[-1].endswith("not started again")


async def test_wrong_configuration_is_given_up_at_once(scheduler, component):
    await scheduler.apply([component("worker", "--exit", str(os.EX_CONFIG))])
    with pytest.raises(EngineError, match=r"exit code 78 \(wrong configuration\)\nit wrote nothing"):
        await scheduler.wait_ready()
    assert (await scheduler.status())[0].replicas[0].restarts == 0


async def test_command_that_does_not_exist_is_given_up_at_once(scheduler):
    await scheduler.apply([ComponentSpec("worker", ("no-such-command",))])
    with pytest.raises(EngineError, match="cannot run no-such-command: No such file or directory"):
        await scheduler.wait_ready()


async def test_argument_that_no_process_can_have(scheduler):
    await scheduler.apply([ComponentSpec("worker", ("echo", "a\0b"))])
    with pytest.raises(EngineError, match="worker did not start: cannot be started: embedded null byte"):
        await scheduler.wait_ready()


async def test_scale_up_and_down(scheduler, component, alive):
    await scheduler.apply([component()])
    await scheduler.wait_ready()
    [first] = await pids(scheduler)
    up = await scheduler.scale("worker", 3, expected_generation=1)
    assert (up.desired_replicas, up.generation, len(up.replicas)) == (3, 2, 3)
    await scheduler.wait_ready()
    started = await pids(scheduler)
    assert started[0] == first
    down = await scheduler.scale("worker", 1)
    assert (down.generation, down.ready_replicas) == (3, 1)
    assert await pids(scheduler) == [first]
    assert not any(alive(pid) for pid in started[1:])
    assert (await scheduler.scale("worker", 0)).replicas == []


async def test_scale_refuses_what_is_wrong(scheduler, component):
    await scheduler.apply([component()])
    with pytest.raises(ConfigError, match="worker is at generation 1, not 7"):
        await scheduler.scale("worker", 2, expected_generation=7)
    with pytest.raises(ConfigError, match="no component 'wroker'\nrunning: worker"):
        await scheduler.scale("wroker", 2)
    with pytest.raises(ConfigError, match="replicas must be 0 or more, got -1"):
        await scheduler.scale("worker", -1)
    assert (await scheduler.status())[0].desired_replicas == 1


async def test_restart_replaces_one_after_the_other(scheduler, component):
    await scheduler.apply([component(replicas=2)])
    await scheduler.wait_ready()
    before = await pids(scheduler)
    await scheduler.restart("worker")
    assert await states(scheduler) == {"worker": ["ready", "ready"]}
    assert set(before).isdisjoint(await pids(scheduler))


async def test_apply_changes_only_what_is_different(scheduler, component, alive):
    await scheduler.apply([component("frontend"), component("worker"), component("planner")])
    await scheduler.wait_ready()
    [frontend], [worker], [planner] = [await pids(scheduler, name) for name in ("frontend", "worker", "planner")]
    await scheduler.apply([component("frontend"), component("worker", "--print", "new")])
    assert await states(scheduler) == {"frontend": ["ready"], "worker": ["ready"]}
    assert await pids(scheduler, "frontend") == [frontend]
    assert await pids(scheduler) != [worker]
    assert not alive(worker)
    assert not alive(planner)
    assert [c.generation for c in await scheduler.status()] == [1, 2]


async def test_broken_change_stops_at_the_first_replica(scheduler, component):
    await scheduler.apply([component(replicas=2)])
    await scheduler.wait_ready()
    before = await pids(scheduler)
    with pytest.raises(EngineError, match="worker-0 did not start"):
        await scheduler.apply([component("worker", "--exit", str(os.EX_CONFIG), replicas=2)])
    assert (await pids(scheduler))[1] == before[1]
    assert await states(scheduler) == {"worker": ["failing", "ready"]}


async def test_unhealthy_replica_is_shown_and_comes_back(scheduler, component, tmp_path):
    unhealthy = tmp_path / "unhealthy"
    await scheduler.apply([component("worker", "--unhealthy-file", str(unhealthy))])
    await scheduler.wait_ready()
    unhealthy.touch()
    while (replica := (await scheduler.status())[0].replicas[0]).state == "ready":
        await asyncio.sleep(0.02)
    assert (replica.state, replica.message) == ("failing", "/health answers 503")
    unhealthy.unlink()
    while (await states(scheduler))["worker"] != ["ready"]:
        await asyncio.sleep(0.02)
    assert (await scheduler.status())[0].replicas[0].restarts == 0


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([ComponentSpec("a", ("x",)), ComponentSpec("a", ("y",))], "two components are called 'a'"),
        ([ComponentSpec("a", ())], "a has no command"),
        ([ComponentSpec("a", ("x",), replicas=-1)], "a: replicas must be 0 or more"),
        ([ComponentSpec("a", ("x",), resources={"gpu": "half"})], "a: gpu must be a whole number, got 'half'"),
        ([ComponentSpec("a", ("x",), working_directory="/no/such")], "a: working directory /no/such does not exist"),
    ],
)
async def test_wrong_components_change_nothing(scheduler, component, specs, message):
    await scheduler.apply([component()])
    with pytest.raises(ConfigError, match=message):
        await scheduler.apply(specs)
    assert [c.name for c in await scheduler.status()] == ["worker"]


async def test_gpus_are_shared_out(scheduler, component, output, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    flags = ("--print-env", "CUDA_VISIBLE_DEVICES")
    await scheduler.apply([component("worker", *flags, resources={"gpu": "1"}, replicas=2)])
    await scheduler.wait_ready()
    assert sorted(text for _, text in output.lines) == ["CUDA_VISIBLE_DEVICES 4", "CUDA_VISIBLE_DEVICES 5"]
    with pytest.raises(ConfigError, match="big needs 2 GPUs; 1 of 3 are free"):
        await scheduler.apply(
            [component("worker", *flags, resources={"gpu": "1"}, replicas=2), component("big", resources={"gpu": "2"})]
        )
    with pytest.raises(ConfigError, match="worker needs 1 GPU; 0 of 3 are free"):
        await scheduler.scale("worker", 4)
    assert [(c.name, c.desired_replicas) for c in await scheduler.status()] == [("worker", 2)]


async def test_gpus_of_a_smaller_component_go_to_a_new_one(scheduler, component, output, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    await scheduler.apply([component("worker", resources={"gpu": "1"}, replicas=2)])
    flags = ("--print-env", "CUDA_VISIBLE_DEVICES")
    await scheduler.apply(
        [component("prefill", *flags, resources={"gpu": "1"}), component("worker", resources={"gpu": "1"})]
    )
    await scheduler.wait_ready()
    assert output.lines == [("prefill", "CUDA_VISIBLE_DEVICES 1")]


async def test_two_schedulers_do_not_share_a_state_directory(scheduler, component, tmp_path):
    await scheduler.apply([component()])
    second = LocalScheduler(tmp_path / "state")
    with pytest.raises(ConfigError, match="another scheduler runs in"):
        await second.apply([component()])
    await second.close()
    assert len(await scheduler.status()) == 1


async def test_close_interrupts_a_rolling_restart(scheduler, component, tmp_path):
    unhealthy = tmp_path / "unhealthy"
    await scheduler.apply([component("worker", "--unhealthy-file", str(unhealthy), replicas=2)])
    await scheduler.wait_ready()
    unhealthy.touch()
    restarting = asyncio.create_task(scheduler.restart("worker"))
    while (await states(scheduler))["worker"][0] != "starting":
        await asyncio.sleep(0.02)
    await scheduler.close()
    with pytest.raises(EngineError, match="stop"):
        await restarting
