"""The benchmark suite: `s3vol bench SOURCE` on a user's own endpoint, `make bench` on a MinIO of its own.

Theory of operation. One run measures everything side by side: the endpoint asked without a file system (`plain`: the
limit), the local disk, s3vol in both modes, and every peer that is on PATH. It goes session by session, and within a
session from target to target, again for each repeat and each time with another first: whatever else the machine does
hits all of them. What counts is the ratio within a run; absolute times belong to the machine. Each target is a mount
process of its own on an empty cache, as users start it, and works below a prefix of its own, which is removed after it.

A figure counts only if its promise was kept: right after the last call returned, another S3 client (boto3) looks which
objects are in the bucket and compares their bytes (`promise`). A target that fails that has no figure in this row.

From the top: `command` (what a user asked for) -> `runner` (sessions, targets, repeats) -> `work` (what is timed) and
`targets` (what it is timed on) -> `result` (samples, medians, ratios) -> `report`, `page`, `compare`. `rows` is the
table of all figures. `growth` measures cost as work grows, `stages` where the time of one operation goes.

How it is shipped. The wheel holds this package beside `s3vol_fuse` and `s3vol_plugin`, job files included (hatchling
takes all files of a package), because users have endpoints and we do not: `s3vol bench` must work where s3vol is
installed. It needs no Python package that a mount does not need. Only what needs this repository stays outside: the
MinIO of `make bench`, the dockerd of `make bench-docker`. Nothing of the product imports it but the command line.

Rejected: all runs of one target, then all of the next (a slow minute then looks like a slow file system), fio for
everything (its clocks leave out open() and close(), and there is where an object store's time goes), and a top-level
package `bench` in the wheel (a name that is not ours).
"""
