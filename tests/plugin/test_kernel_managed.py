"""A managed plugin's mounts are seen by the host as well, through two mounts of dockerd's: neither is a use."""

from __future__ import annotations

from s3vol.mounts import parse_table
from s3vol_plugin.base import Usage
from s3vol_plugin.kernel import Namespace, find_usages

POINT = "/mnt/volumes/abc"
FOLDER = "/docker/plugins/1/propagated-mount"
FUSE = "rw,nosuid,nodev,relatime shared:6 - fuse.s3vol s3vol:web rw,user_id=0"
PLUGIN = f"""\
137 130 0:60 / / rw,relatime - overlay overlay rw
377 137 8:1 /lib{FOLDER} /mnt/volumes rw,relatime shared:5 - ext4 /dev/sda1 rw
45 377 0:50 / {POINT} {FUSE}
"""
HOST = f"""\
20 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
224 20 8:1 /lib/docker /var/lib/docker rw,relatime shared:5 - ext4 /dev/sda1 rw
141 224 8:1 /lib{FOLDER} /var/lib{FOLDER} rw,relatime shared:5 - ext4 /dev/sda1 rw
139 224 0:50 / /var/lib{FOLDER}/abc {FUSE}
164 141 0:50 / /var/lib{FOLDER}/abc {FUSE}
"""


def usages(*tables: str) -> list[Usage]:
    """Usages of the volume, seen from the plugin's namespace."""
    views = [Namespace(pid, pid == 1, parse_table(table)) for pid, table in enumerate((PLUGIN, *tables), 1)]
    return find_usages(views, lambda mount: mount.device == "0:50", besides=POINT)


def test_what_the_host_sees_of_a_plugin_s_mount_is_no_use() -> None:
    assert usages(HOST) == []


def test_a_container_s_mount_is_one_though_it_follows_what_is_mounted_below() -> None:
    container = f"""\
100 90 0:77 / / rw,relatime - overlay overlay rw
101 100 0:50 / /data {FUSE.replace("shared:6", "master:6")}
"""
    assert usages(HOST, container) == [Usage(3, "/data", "/", False)]


def test_another_directory_of_the_same_peer_group_is_a_use() -> None:
    elsewhere = HOST + f"165 141 0:50 / /var/lib{FOLDER}/copy {FUSE}\n"
    assert [usage.mountpoint for usage in usages(elsewhere)] == [f"/var/lib{FOLDER}/copy"]
