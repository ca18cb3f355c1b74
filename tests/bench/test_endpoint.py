"""The prefix of a run: who is refused, and that nothing of it is left, on a real MinIO."""

from __future__ import annotations

from pathlib import Path

import pytest
from botocore.stub import Stubber

from s3vol.errors import S3volError, UsageError
from s3vol_bench.command import occupied
from s3vol_bench.endpoint import Endpoint, Room
from s3vol_bench.errors import PromiseBroken
from s3vol_bench.promise import Expected, Pattern, await_kept, check
from tests.support.minio import ACCESS_KEY, REGION, SECRET_KEY, Minio

pytestmark = pytest.mark.minio


def room_on(server: Minio, bucket: str, prefix: str = "run/") -> Room:
    """A prefix of a bucket."""
    return Room(Endpoint(server.endpoint, REGION, bucket, prefix, ACCESS_KEY, SECRET_KEY))


def test_nothing_of_a_run_is_left_and_nothing_else_is_touched(minio: Minio, bucket: str) -> None:
    room, client = room_on(minio, bucket), minio.client()
    client.put_object(Bucket=bucket, Key="mine", Body=b"x")
    room.enter()
    for name in ("a", "b/c", "b/"):
        client.put_object(Bucket=bucket, Key=f"run/{name}", Body=b"x")
    room.clean("b")
    assert set(room.listed("")) == {"a"}
    room.clean("")
    assert [row["Key"] for row in client.list_objects_v2(Bucket=bucket)["Contents"]] == ["mine"]


def test_where_the_bucket_keeps_versions_they_are_removed_as_well(minio: Minio, bucket: str) -> None:
    room, client = room_on(minio, bucket), minio.client()
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    room.enter()
    for content in (b"1", b"2"):
        client.put_object(Bucket=bucket, Key="run/a", Body=content)
    client.delete_object(Bucket=bucket, Key="run/a")
    room.clean("")
    left = client.list_object_versions(Bucket=bucket)
    assert not left.get("Versions")
    assert not left.get("DeleteMarkers")


def test_a_bucket_that_locks_objects_is_refused(minio: Minio) -> None:
    client = minio.client()
    client.create_bucket(Bucket="locking-bench", ObjectLockEnabledForBucket=True)
    rule = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}}
    client.put_object_lock_configuration(
        Bucket="locking-bench",
        ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule},  # type: ignore[typeddict-item]  # literals
    )
    with pytest.raises(UsageError, match="locks new objects by default, so that a benchmark could not be removed"):
        room_on(minio, "locking-bench").enter()


def test_a_prefix_that_is_not_empty_is_refused(minio: Minio, bucket: str) -> None:
    minio.client().put_object(Bucket=bucket, Key="run/of/somebody", Body=b"x")
    with pytest.raises(UsageError, match=r"run/ is not empty; a benchmark needs a prefix of its own"):
        room_on(minio, bucket).enter()


def test_credentials_that_may_not_write_are_refused_with_what_is_needed(minio: Minio, bucket: str) -> None:
    room = room_on(minio, bucket)
    with Stubber(room.client) as stub:
        stub.add_client_error("get_object_lock_configuration", "AccessDenied")
        stub.add_client_error("get_bucket_versioning", "AccessDenied")
        stub.add_response("list_objects_v2", {})
        stub.add_client_error("put_object", "AccessDenied", "Access Denied.")
        with pytest.raises(UsageError, match=r"may not be written .*needs s3:PutObject, s3:GetObject and s3:DeleteObj"):
            room.enter()


def test_bytes_are_compared_whether_the_etag_tells_or_not(minio: Minio, bucket: str) -> None:
    room, client = room_on(minio, bucket), minio.client()
    client.put_object(Bucket=bucket, Key="run/t/small", Body=b"right")
    client.put_object(Bucket=bucket, Key="run/t/long", Body=b"ab" * 1000)
    check(room, "t/", Expected({"small": b"right", "long": Pattern(b"ab", 2000)}))
    with pytest.raises(PromiseBroken, match="small: other bytes in the bucket than were written"):
        check(room, "t/", Expected({"small": b"wrong"}))
    with pytest.raises(PromiseBroken, match="long: other bytes in the bucket than were written"):
        check(room, "t/", Expected({"long": Pattern(b"ba", 2000)}))


def test_what_is_not_there_in_time_is_a_broken_promise(minio: Minio, bucket: str) -> None:
    room = room_on(minio, bucket)
    with pytest.raises(PromiseBroken, match=r"late: not in the bucket when the call had returned, nor 0\.2 s later"):
        await_kept(room, "t/", Expected({"late": b"x"}), patience_s=0.2)


def test_an_endpoint_that_goes_away_in_the_middle_ends_the_run_in_one_line_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Minio(tmp_path) as server:
        where = Endpoint(server.endpoint, REGION, server.new_bucket(), "", ACCESS_KEY, SECRET_KEY)

        def run() -> None:
            with occupied(where, lambda text: None) as room:
                server.kill()
                room.clean("create/")

        with pytest.raises(S3volError, match=r"s3://.*/s3vol-bench-.*: the endpoint failed in the middle of the run: "):
            run()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "could not be removed, remove it by hand" in lines[0]
