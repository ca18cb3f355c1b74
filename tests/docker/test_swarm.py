"""Two machines in one swarm: what a volume is for that follows its containers.

A service in a swarm finds its volume by name on whatever node it comes up, so each case here moves something: by an
update of the constraint, by `service update --force`, by a kill, by the crash of a whole node.
"""

from __future__ import annotations

import json
import threading
from itertools import pairwise

import pytest

from tests.docker.engine import Engine
from tests.docker.images import BUSYBOX
from tests.docker.site import fresh
from tests.docker.swarmsite import SERVICE, SwarmSite, fetch, mount
from tests.support.minio import wait_for

pytestmark = [pytest.mark.docker, pytest.mark.minio, pytest.mark.kernel]

KILLS = 50
REPLICAS = 5  # killed at a time
# A program that keeps a counter and a log, each change made safe as a database does it: a new file, renamed.
KEEPER = """
while true; do
  i=$(($(cat /data/count 2>/dev/null || echo 0)+1))
  echo $i >> /data/log; sync /data/log; echo $i > /data/new; sync /data/new; mv /data/new /data/count; sleep 0.05
done
"""


def count_of(swarm: SwarmSite, volume: str) -> int:
    """The counter of a KEEPER, as the bucket has it."""
    return int(swarm.read(volume, "count") or 0)


def gapless(log: bytes) -> None:
    """Each number of the log follows the one before; the last one may be there twice, when its writer was killed."""
    numbers = [int(row) for row in log.split()]
    assert all(after - before in (0, 1) for before, after in pairwise(numbers)), numbers


def test_a_service_that_is_moved_to_another_node_finds_its_data(swarm: SwarmSite) -> None:
    volume = fresh("portainer")
    where = ("--constraint", "node.hostname==node1")
    swarm.docker(*SERVICE, "--name", "keeper", *where, *mount(volume, "/data"), BUSYBOX, "sh", "-c", KEEPER)
    swarm.await_tasks("keeper", 1, on="node1")
    wait_for(lambda: count_of(swarm, volume) > 5, 30.0, "the keeper to write")
    before = 0
    for node in ("node2", "node1"):
        other = "node1" if node == "node2" else "node2"
        change = ("--constraint-rm", f"node.hostname=={other}", "--constraint-add", f"node.hostname=={node}")
        swarm.docker("service", "update", "-d", *change, "keeper")
        swarm.await_tasks("keeper", 1, on=node)
        before = count_of(swarm, volume)
        wait_for(lambda: count_of(swarm, volume) > before + 5, 30.0, "the keeper to write on")  # noqa: B023  # called at once
    swarm.remove("keeper")
    log = swarm.objects(volume)["log"]
    gapless(log)
    assert int(log.split()[-1]) >= before
    assert swarm.on_host_disk() == []


def test_three_web_servers_show_what_one_of_them_wrote_and_a_dead_node_takes_nothing_along(swarm: SwarmSite) -> None:
    volume = fresh("web")
    serve = ("httpd", "-f", "-p", "80", "-h", "/www")
    swarm.docker(*SERVICE, "--name", "web", "--replicas", "3", *mount(volume, "/www"), BUSYBOX, *serve)
    tasks = swarm.await_tasks("web", 3)
    assert set(tasks.values()) == {"node1", "node2"}
    for number, (writer, node) in enumerate(tasks.items()):
        swarm.engine_of(node).sh(writer, f"echo 'page {number}' > /www/page.html; echo {number} > /www/only-{number}")
        for container, place in tasks.items():
            assert fetch(swarm.engine_of(place), container, "page.html") == f"page {number}\n"
    remote = next(container for container, node in tasks.items() if node == "node2")
    swarm.worker.sh(remote, "seq 100000 > /www/last-words; dd if=/dev/urandom of=/www/blob bs=1M count=8 2>/dev/null")
    digest = swarm.worker.sh(remote, "md5sum < /www/blob")
    swarm.crash_worker()
    survivors = swarm.await_tasks("web", 3, on="node1")
    for container in survivors:
        assert fetch(swarm.manager, container, "last-words").splitlines()[-1] == "100000"
        assert swarm.manager.sh(container, "cat /www/only-*; md5sum < /www/blob") == f"0\n1\n2\n{digest}"
    swarm.boot_worker()
    swarm.remove("web")
    assert swarm.on_host_disk() == []


def test_a_monitoring_stack_keeps_its_volumes_over_rm_and_deploy_and_over_scale(swarm: SwarmSite) -> None:
    """Services in the shape of Grafana and Prometheus: their users, paths and ways of writing, from busybox.

    The real programs come from a registry or from their projects' builds, and neither is asked by a test. The stack is
    on each node's bridge: an overlay network takes seconds, and has no part in this.
    """
    stack = fresh("mon")
    keeper = KEEPER.replace("/data", "/var/lib/grafana").replace("$", "$$")
    compose = f"""
version: "3.8"
services:
  grafana:
    image: {BUSYBOX}
    user: "472:0"
    command: ["sh", "-c", {json.dumps(keeper)}]
    volumes: ["grafana:/var/lib/grafana", "shared:/shared"]
  prometheus:
    image: {BUSYBOX}
    user: "65534:65534"
    command: ["sh", "-c", "while true; do date > /shared/from-$$HOSTNAME; sleep 0.2; done"]
    volumes: ["shared:/shared"]
volumes:
  grafana: {{driver: s3vol, driver_opts: {{uid: "472", gid: "0"}}}}
  shared: {{driver: s3vol, driver_opts: {{umask: "000"}}}}
networks:
  default: {{external: true, name: bridge}}
"""
    path = swarm.folder / "stack.yml"
    path.write_text(compose)

    def writers() -> int:
        return sum(name.startswith("from-") for name in swarm.objects(f"{stack}_shared"))

    before = 0
    for deployments in (1, 2):
        swarm.docker("stack", "deploy", "--resolve-image", "never", "-c", str(path), stack)
        swarm.await_tasks(f"{stack}_grafana", 1)
        wait_for(lambda: count_of(swarm, f"{stack}_grafana") > before + 5, 60.0, "grafana to write on")  # noqa: B023  # called at once
        swarm.docker("service", "scale", "-d", f"{stack}_prometheus=2")
        swarm.await_tasks(f"{stack}_prometheus", 2)
        wait_for(lambda: writers() >= 2 * deployments, 60.0, "both replicas to write")  # noqa: B023  # called at once
        swarm.remove_stack(stack)
        before = count_of(swarm, f"{stack}_grafana")
    gapless(swarm.objects(f"{stack}_grafana")["log"])
    assert writers() >= 4, "both replicas of both deployments"
    both = {f"{stack}_grafana", f"{stack}_shared"}
    wait_for(lambda: both <= set(swarm.worker.volumes()), 40.0, "the other node to list them")  # its copy is 30 s old
    assert swarm.on_host_disk() == []


def test_forced_updates_and_kills_lose_no_byte_and_no_mount(swarm: SwarmSite) -> None:
    volume = fresh("churn")
    script = "i=0; while true; do i=$((i+1)); f=/data/$HOSTNAME-$i; echo $i > $f && echo $f; sleep 0.1; done"
    many = ("--replicas", str(REPLICAS))
    swarm.docker(*SERVICE, "--name", "churn", *many, *mount(volume, "/data"), BUSYBOX, "sh", "-c", script)
    promised: set[str] = set()
    killed = 0
    while killed < KILLS:
        tasks = swarm.await_tasks("churn", REPLICAS)
        if killed // REPLICAS % 4 == 3:
            swarm.docker("service", "update", "-d", "--force", "--update-parallelism", "0", "churn")
        else:
            for container, node in tasks.items():
                swarm.engine_of(node).docker("kill", container)
        killed += len(tasks)
        swarm.await_replaced("churn", REPLICAS, tasks)
        promised |= swarm.said(tasks)  # up to their last moment: a swarm keeps the containers of its last tasks
    swarm.remove("churn")
    swarm.await_idle()
    found = swarm.objects(volume)
    assert len(promised) > KILLS
    assert {name for name in promised if name not in found} == set()
    assert {name for name in promised if found[name] != f"{name.rpartition('-')[2]}\n".encode()} == set()
    assert [plugin.status(volume)["refs"] for plugin in swarm.plugins] == [0, 0]
    assert swarm.on_host_disk() == []


def test_the_driver_is_announced_to_the_swarm_without_a_first_use(swarm: SwarmSite) -> None:
    swarm.restart_engines()  # a dockerd that has just started has loaded no driver
    form = "{{range .Description.Engine.Plugins}}{{.Type}}:{{.Name}} {{end}}"

    def announced() -> bool:
        return all(
            "Volume:s3vol" in swarm.docker("node", "inspect", "--format", form, node) for node in ("node1", "node2")
        )

    wait_for(announced, 60.0, "both nodes to announce the driver")


def test_an_external_volume_is_found_on_a_node_that_never_saw_it(swarm: SwarmSite) -> None:
    volume = fresh("external")
    swarm.manager.docker("volume", "create", "-d", "s3vol", volume)
    bare = f"type=volume,src={volume},dst=/data"  # no driver: what `external: true` becomes
    swarm.docker(
        *SERVICE,
        "--name",
        "ext",
        "--mode",
        "global",
        "--mount",
        bare,
        BUSYBOX,
        "sh",
        "-c",
        "hostname > /data/$HOSTNAME; sleep 1d",
    )
    tasks = swarm.await_tasks("ext", 2)
    assert set(tasks.values()) == {"node1", "node2"}
    for engine in swarm.engines:
        assert engine.inspect("volume", volume)["Driver"] == "s3vol"
    wait_for(lambda: len(swarm.objects(volume)) == 2, 20.0, "both to write")
    swarm.remove("ext")
    assert swarm.on_host_disk() == []


def test_a_volume_that_was_made_elsewhere_this_very_moment_is_no_local_one_here(swarm: SwarmSite) -> None:
    for here, there in ((swarm.manager, swarm.worker), (swarm.worker, swarm.manager)) * 2:
        volume = fresh()
        here.run("volume", "inspect", volume)  # asked for before it is made: both have just learned that there is none
        there.run("volume", "inspect", volume)
        there.docker("volume", "create", "-d", "s3vol", volume)
        here.docker("run", "--rm", "-v", f"{volume}:/d", BUSYBOX, "sh", "-c", "echo here > /d/made")
        assert here.inspect("volume", volume)["Driver"] == "s3vol"
        assert swarm.read(volume, "made") == b"here\n"
    assert swarm.on_host_disk() == []


def test_doctor_names_a_local_volume_that_shadows_one_of_the_swarm(swarm: SwarmSite) -> None:
    volume = fresh("shadow")
    swarm.worker.docker("volume", "create", volume)  # as a node makes it that has no driver yet
    swarm.manager.docker("volume", "create", "-d", "s3vol", volume)
    swarm.worker.sleeper("victim", "-v", f"{volume}:/d")
    told = swarm.plugins[1].cli("doctor", "--docker")
    assert told.returncode == 1
    assert f"local volume {volume} shadows the s3vol volume of that name, and is used by victim" in told.stdout
    swarm.worker.docker("rm", "-f", "victim")
    swarm.worker.docker("volume", "rm", volume)
    for plugin in swarm.plugins:
        healthy = plugin.cli("doctor", "--docker")
        assert healthy.returncode == 0, healthy.stdout
    assert swarm.worker.inspect("volume", volume)["Driver"] == "s3vol"


def test_a_volume_made_on_one_node_is_found_on_all_and_its_removal_too(swarm: SwarmSite) -> None:
    volume = fresh()
    swarm.manager.docker("volume", "create", "-d", "s3vol", "-o", "uid=33", volume)
    assert swarm.worker.inspect("volume", volume)["Status"]["options"] == {"uid": "33"}, "asked by name: at once"
    assert volume in swarm.worker.volumes()
    swarm.worker.sleeper("user", "-v", f"{volume}:/d")
    assert "node2" in swarm.manager.refused("volume", "rm", volume)
    swarm.worker.docker("rm", "-f", "user")
    swarm.await_idle()
    swarm.manager.docker("volume", "rm", volume)
    wait_for(lambda: volume not in swarm.worker.volumes(), 30.0, "the other node to know of the removal")


def test_two_nodes_that_create_one_name_at_once_get_one_volume(swarm: SwarmSite) -> None:
    for number in range(10):
        volume, done = fresh(), dict[str, str]()

        def create(engine: Engine, uid: str, volume: str = volume, done: dict[str, str] = done) -> None:
            made = engine.run("volume", "create", "-d", "s3vol", "-o", f"uid={uid}", volume)
            done[uid] = "" if made.returncode == 0 else made.stderr

        wanted = ("33", "33" if number % 2 else "34")
        both = [threading.Thread(target=create, args=pair) for pair in zip(swarm.engines, wanted, strict=True)]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        seen = {engine.inspect("volume", volume)["Status"]["uuid"] for engine in swarm.engines}
        assert len(seen) == 1
        if number % 2:
            assert set(done.values()) == {""}, "the same volume twice is no conflict"
            continue
        winners = [uid for uid, error in done.items() if not error]
        assert winners, done
        truth = swarm.manager.inspect("volume", volume)["Status"]["options"]["uid"]
        assert truth in winners
        assert all("exists already" in error for error in done.values() if error)
