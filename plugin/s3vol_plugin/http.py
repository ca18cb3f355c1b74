"""The driver's protocol as a Flask application: which verb, what came, and what an error looks like on the wire.

Theory of operation. A request comes in a thread of the server; a `Portal` takes it into the trio loop, where all
state is, and waits for the reply.

No answer is an answer here. To dockerd any error text, any status but 200 and any JSON that it cannot decode means
"there is no such volume", and that is final. So when a question cannot be answered, or anything unforeseen happens
to it, NoReply is raised and the server closes the connection: dockerd keeps what it knows then, and tries again.

dockerd repeats a request whose connection broke, with an empty body (moby v20.10 pkg/plugins/client.go reads the
body once). A missing name is thus normal: questions are not answered then, and orders say so.

dockerd sends no Content-Type, and an empty Host up to 20.10; neither is looked at.
"""

from __future__ import annotations

import concurrent.futures
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import flask
import trio

from s3vol.errors import NotFound, S3volError, UsageError
from s3vol_plugin.driver import Driver, Reply, Request
from s3vol_plugin.server import NoReply

CONTENT_TYPE = "application/vnd.docker.plugins.v1.2+json"
_ANSWER_MAX_S = 130.0  # every verb has a deadline of its own below this; here only a loop that hangs is given up

log = logging.getLogger(__name__)

Verb = Callable[[Request], Awaitable[Reply]]


class Portal:
    """The way from a thread into the trio loop. Calls run in `tasks` and are cancelled with it."""

    def __init__(self, tasks: trio.Nursery) -> None:
        self._tasks = tasks
        self._token = trio.lowlevel.current_trio_token()

    def call(self, verb: Verb, request: Request) -> Reply:
        """Run a verb in the loop and wait for it, in a thread. Raises what it raises, NoReply when the loop is gone."""
        answer: concurrent.futures.Future[Reply] = concurrent.futures.Future()

        async def run() -> None:
            try:
                reply = await verb(request)
            except Exception as error:
                answer.set_exception(error)
            except BaseException:
                answer.set_exception(NoReply())
                raise
            else:
                answer.set_result(reply)

        def start() -> None:
            try:
                self._tasks.start_soon(run)
            except RuntimeError:  # the nursery has ended
                answer.set_exception(NoReply())

        try:
            self._token.run_sync_soon(start)
            return answer.result(_ANSWER_MAX_S)
        except (trio.RunFinishedError, concurrent.futures.TimeoutError):
            raise NoReply from None


def make_app(driver: Driver, portal: Portal, count: Callable[[str], None]) -> flask.Flask:
    """The application. `count` is told `errors` and `hang_ups`, in any thread."""
    app = flask.Flask("s3vol_plugin", static_folder=None)
    app.config["PROPAGATE_EXCEPTIONS"] = True  # to the task below, which closes the connection
    questions = {"VolumeDriver.Get": driver.get, "VolumeDriver.List": driver.list, "VolumeDriver.Path": driver.path}
    orders = {
        "Plugin.Activate": driver.activate,
        "VolumeDriver.Capabilities": driver.capabilities,
        "VolumeDriver.Create": driver.create,
        "VolumeDriver.Mount": driver.mount,
        "VolumeDriver.Unmount": driver.unmount,
        "VolumeDriver.Remove": driver.remove,
    }

    def question(name: str, verb: Verb) -> flask.Response:
        try:
            request = _parse()
            if not request.name and name != "VolumeDriver.List":
                raise UsageError("empty request")
            return _reply({**portal.call(verb, request), "Err": ""})
        except NotFound as error:
            return _reply({"Err": str(error)})
        except Exception as error:
            count("hang_ups")
            known = isinstance(error, S3volError | NoReply)
            log.warning("not answered: %s", error or "ending", extra={"verb": name}, exc_info=not known)
            raise NoReply from None

    def order(name: str, verb: Verb) -> flask.Response:
        try:
            request = _parse()
            if not request.name and name in _NAMED:
                raise UsageError("empty request (retry)")
            return _reply({**portal.call(verb, request), "Err": ""})
        except NoReply:
            raise
        except S3volError as error:
            text = _one_line(str(error))
        except Exception as error:
            log.exception("unexpected failure", extra={"verb": name})
            text = f"unexpected failure, see the log of s3vol-plugin: {type(error).__name__}"
        count("errors")
        log.warning("refused: %s", text, extra={"verb": name})
        return _reply({"Err": text})

    for kind, verbs in ((question, questions), (order, orders)):
        for name, verb in verbs.items():
            app.add_url_rule(f"/{name}", name.replace(".", "_"), partial(kind, name, verb), methods=["POST"])
    return app


_NAMED = ("VolumeDriver.Create", "VolumeDriver.Mount", "VolumeDriver.Remove")  # not Unmount: it never fails


def _parse() -> Request:
    """The request that is being handled. Raises UsageError."""
    body = flask.request.get_data()
    try:
        values: dict[str, Any] = json.loads(body) if body.strip() else {}
        name, identity = values.get("Name") or "", values.get("ID") or ""
        options: dict[str, Any] = dict(values.get("Opts") or {})
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise UsageError("not a request of Docker's volume driver protocol") from None
    if not (isinstance(name, str) and isinstance(identity, str) and _are_texts(options)):
        raise UsageError("not a request of Docker's volume driver protocol: a value has the wrong type")
    return Request(name, identity, options, flask.request.environ["waitress.client_disconnected"])


def _are_texts(options: Mapping[str, object]) -> bool:
    return all(isinstance(value, str) for value in options.values())


def _reply(values: Mapping[str, Any]) -> flask.Response:
    return flask.Response(json.dumps(values).encode(), content_type=CONTENT_TYPE)


def _one_line(text: str) -> str:
    return " ".join(text.split())
