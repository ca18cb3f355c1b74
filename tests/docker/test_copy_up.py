"""An image's content becomes a new volume's content, and what else comes into a volume from outside of a container.

moby copies with continuity/fs: mkdir, chmod, lchown, utimensat, symlink, link, mknod and extended attributes, and a
failure of any of them (ENOTSUP of attributes aside) fails the container. What the image has is compared with what the
volume has, entry by entry, by the same program in the same image.
"""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from tests.docker.images import BUSYBOX, CONTENT, content_image
from tests.docker.site import Site
from tests.support.minio import wait_for

pytestmark = [pytest.mark.docker, pytest.mark.minio, pytest.mark.kernel]

COPIES = 50  # of a file into a container, two Mounts each, and out of it again, one: a hundred times `docker cp`
# Links are counted for files only, and so are sizes: a directory's are the file system's own affair.
MANIFEST = r"""
find /data | sort | while IFS= read -r f; do
  if [ -L "$f" ]; then echo "$f|$(stat -c '%F|%u|%g' "$f")|$(readlink "$f")"
  elif [ -f "$f" ]; then echo "$f|$(stat -c '%f|%u|%g|%Y|%h|%s' "$f")|$(md5sum < "$f")"
  else echo "$f|$(stat -c '%f|%u|%g|%Y|%t:%T' "$f")"; fi
done
"""


@pytest.fixture
def content(site: Site) -> str:
    """The image with content."""
    if not site.docker.docker("image", "ls", "-q", CONTENT):
        site.docker.load(CONTENT, content_image())
    return CONTENT


def test_everything_that_a_tree_can_have_is_copied_into_a_new_volume(site: Site, content: str) -> None:
    name = site.create()
    expected = site.docker.docker("run", "--rm", content, "sh", "-c", MANIFEST).splitlines()
    assert len(expected) == 15
    copied = site.docker.docker("run", "--rm", "-v", f"{name}:/data", content, "sh", "-c", MANIFEST).splitlines()
    assert copied == expected
    site.plugin.await_idle()
    way = f"{name}:/data:ro,nocopy"
    again = site.docker.docker("run", "--rm", "-v", way, content, "sh", "-c", MANIFEST).splitlines()
    assert again == expected, "and it is the same after everything was unmounted"


def test_hard_links_stay_one_file_and_extended_attributes_are_copied(site: Site, content: str) -> None:
    name = site.create()
    site.docker.sleeper("linked", "-v", f"{name}:/data", image=content)
    path = site.node.path(site.plugin.mountpoint(name)) / "tagged"
    assert os.getxattr(path, "user.colour") == b"blue"
    assert site.docker.sh("linked", "echo more >> /data/second; cat /data/third") == "linked\nmore"
    assert site.docker.sh("linked", "rm /data/first; stat -c %h /data/second; cat /data/third") == "2\nlinked\nmore"


@pytest.mark.parametrize("how", ["nocopy", "not empty", "path not in the image"])
def test_nothing_is_copied_where_nothing_may_be(site: Site, content: str, how: str) -> None:
    name = site.create()
    if how == "not empty":
        site.docker.docker("run", "--rm", "-v", f"{name}:/d", BUSYBOX, "sh", "-c", "echo mine > /d/mine")
    target, option = ("/elsewhere", "") if how == "path not in the image" else ("/data", "")
    option = ":nocopy" if how == "nocopy" else ""
    found = site.docker.docker("run", "--rm", "-v", f"{name}:{target}{option}", content, "ls", target)
    assert found == ("mine" if how == "not empty" else "")


def test_a_user_who_is_not_root_owns_what_the_image_says(site: Site, content: str) -> None:
    name = site.create()
    script = "id -u; echo mine > /data/mine; cat /data/owned /data/mine; stat -c '%u:%g' /data/mine"
    said = site.docker.docker("run", "--rm", "-u", "33:33", "-v", f"{name}:/data", content, "sh", "-ec", script)
    assert said.splitlines() == ["33", "owned", "mine", "33:33"]
    stranger = ["run", "--rm", "-u", "1000:1000", "-v", f"{name}:/data:nocopy", content, "sh", "-c", "echo x > /data/x"]
    assert "Permission denied" in site.docker.refused(*stranger)


def test_uid_and_gid_let_a_user_write_who_is_not_root(site: Site) -> None:
    name = site.create(None, "uid=1000", "gid=1000")
    script = "echo mine > /d/mine; stat -c '%u:%g' /d /d/mine"
    said = site.docker.docker("run", "--rm", "-u", "1000:1000", "-v", f"{name}:/d", BUSYBOX, "sh", "-ec", script)
    assert said.splitlines() == ["1000:1000", "1000:1000"]


def test_containers_of_different_users_share_a_volume(site: Site) -> None:
    name = site.create(None, "umask=000")
    site.docker.sleeper("other", "-v", f"{name}:/d")
    for user in ("0", "33", "1000"):
        script = f"echo {user} > /d/by-{user}; cat /d/by-*"
        site.docker.docker("run", "--rm", "-u", user, "-v", f"{name}:/d", BUSYBOX, "sh", "-ec", script)
    assert site.objects(name) == {f"by-{user}": f"{user}\n".encode() for user in ("0", "33", "1000")}


def test_a_hundred_times_cp_beside_a_running_writer(site: Site, tmp_path: Path) -> None:
    name = site.create()
    writer = "i=0; while [ ! -e /d/stop ]; do i=$((i+1)); echo $i >> /d/log; echo $i > /d/now; done; echo $i > /d/last"
    site.docker.docker("run", "-d", "--name", "writer", "-v", f"{name}:/d", BUSYBOX, "sh", "-c", writer)
    for number in range(COPIES):
        body = f"{number}\n" * (number * 100 + 1)
        (tmp_path / "up").write_text(body)
        site.docker.docker("cp", str(tmp_path / "up"), f"writer:/d/copy-{number}")
        site.docker.docker("cp", f"writer:/d/copy-{number}", str(tmp_path / f"down-{number}"))
        assert (tmp_path / f"down-{number}").read_text() == body
    wait_for(lambda: site.refs(name) == 1, 20.0, "dockerd to end the last copy, after its client has")
    site.docker.sh("writer", "touch /d/stop")
    assert site.docker.docker("wait", "writer") == "0"
    site.await_unused(name)
    assert site.plugin.tap.count("Mount", name) > 2 * COPIES
    assert site.plugin.tap.count("Mount", name) == site.plugin.tap.count("Unmount", name)
    found = site.objects(name)
    last = int(found["last"])
    assert last > 10
    assert found["log"] == b"".join(b"%d\n" % i for i in range(1, last + 1)), "a line of the log was lost"
    for number in range(COPIES):
        assert found[f"copy-{number}"] == f"{number}\n".encode() * (number * 100 + 1)


def test_cp_out_of_a_stopped_container_unmounts_again(site: Site, tmp_path: Path) -> None:
    name = site.create()
    site.docker.docker("run", "--name", "stopped", "-v", f"{name}:/d", BUSYBOX, "sh", "-c", "echo hello > /d/greeting")
    site.docker.docker("cp", "stopped:/d/greeting", str(tmp_path / "greeting"))
    assert (tmp_path / "greeting").read_text() == "hello\n"
    site.await_unused(name)


def test_two_containers_that_start_at_once_on_an_empty_volume_leave_it_whole(site: Site, content: str) -> None:
    # moby fills a volume without a lock, a local one as well: the slower of two may find a name taken, and fails then.
    # One that comes a bit later finds a volume that is not empty, and begins while the other one is still copying.
    name = site.create()
    found: list[subprocess.CompletedProcess[str]] = []

    def run() -> None:
        found.append(site.docker.run("run", "--rm", "-v", f"{name}:/data", content, "true"))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [done.stderr for done in found if done.returncode]
    assert len(refused) <= 1
    assert all("file exists" in said for said in refused)
    expected = site.docker.docker("run", "--rm", content, "sh", "-c", MANIFEST)
    assert site.docker.docker("run", "--rm", "-v", f"{name}:/data", content, "sh", "-c", MANIFEST) == expected
    site.await_unused(name)
