"""The Docker volume driver: what dockerd asks, answered from records, and done by `s3vol mount` processes.

```
dockerd ─► http ─► driver ─► registry ─► store            which volumes there are, on all nodes
                     │
                     ├─────► state                        who uses them here (a hint, on disk)
                     └─────► workers ─(process, control socket)─► s3vol mount
                                kernel                    who really uses them: the mount tables
```

`base` has the borders between these rooms, `volume` the value that they all speak of. Nothing of a mount process is
imported: it is started, watched and asked over its control socket, so that it lives on when this one ends.
"""
