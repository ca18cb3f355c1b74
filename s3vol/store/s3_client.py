"""The connections of one bucket: small requests on the event loop, obstore for bodies, botocore for the rest.

Theory of operation. Three clients, one configuration: credentials, region, endpoint, TLS and time-outs are resolved
once, by botocore's rules (they are the ones that users know), and given to all three. None of them retries. `light`
(s3_light) runs on the event loop; the two others are synchronous and run in threads, bounded by one limiter, and
release the GIL while they wait. Behind a proxy, which `light` does not know, botocore does its part.

obstore has time-outs for silence and for the whole request. The silence is what `attempt_timeout_s` bounds; the
whole gets a generous multiple, for bodies that trickle. Bodies over `FAST_BODY_BYTES` go through botocore, whose
time-outs are per block sent.

Reads are abandoned when cancelled: their thread ends by itself, at its time-out. Changes are waited for, so that one
that was cancelled can never land behind a later one of the same caller.

Rejected: obstore's asyncio calls (they need an asyncio loop beside trio's), and botocore for everything (853 µs of CPU
for a 4 KiB GET, against 61).
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlsplit

import botocore.exceptions
import botocore.session
import trio
import urllib3
from botocore import UNSIGNED
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import DataNotFoundError, UnknownServiceError
from botocore.httpsession import URLLib3Session, get_cert_path
from botocore.loaders import Loader
from botocore.utils import get_environ_proxies
from obstore.store import S3Store as FastStore
from urllib3.exceptions import InsecureRequestWarning

from s3vol.errors import S3volError, UsageError
from s3vol.store import edge
from s3vol.store.connections import Address, Connections, Reply
from s3vol.store.s3_light import Light, Place
from s3vol.store.s3_sse import check_transport, encryption
from s3vol.store.settings import Source, StoreSettings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from obstore.store import ClientConfig, S3Config, S3Credential

T = TypeVar("T")

FAST_BODY_BYTES = 8 << 20
"""Bodies up to this go through obstore: at 0.5 MB/s they pass within the default time-out of an attempt."""

_WHOLE_REQUEST = 15  # times attempt_timeout_s: the bound of a whole request whose body keeps trickling
_DEFAULT_REGION = "us-east-1"  # what MinIO assumes, and S3's own default
_CREDENTIAL_TTL = timedelta(minutes=9)
# obstore asks again 5 minutes before its copy expires; botocore renews at 10 minutes, so a copy is good for 9.


class Client:
    """All connections to one bucket. Made by `connect`; closed by `close`."""

    def __init__(self, source: Source, settings: StoreSettings) -> None:
        self.bucket = source.bucket
        self.settings = settings
        session = _session(source, settings)
        self.region: str = (
            settings.region or os.environ.get("AWS_REGION") or session.get_config_variable("region") or _DEFAULT_REGION
        )
        verify = _verify(session, settings)
        self.encryption = encryption(settings)
        self._credentials = None if settings.anonymous else _credentials(session, source)
        self.slow = _slow_client(session, settings, self.region, verify)
        self.base_url = _base_url(self.slow, self.bucket)
        check_transport(self.encryption, self.endpoint)
        self.fast = _fast_store(self, verify, self._credentials)
        http: Any = URLLib3Session  # the stubs know neither a bundle's path nor a pair of time-outs
        proxies = get_environ_proxies(self.base_url)
        self.light = None if proxies else _light(self, verify, self._credentials)
        self._http: URLLib3Session = http(
            verify=verify,
            proxies=proxies,
            timeout=(settings.connect_timeout_s, settings.attempt_timeout_s),
            max_pool_connections=settings.connections,
        )
        self._limiter = trio.CapacityLimiter(settings.connections)

    @property
    def endpoint(self) -> str:
        """Scheme, host and port that requests go to."""
        parts = urlsplit(self.base_url)
        return f"{parts.scheme}://{parts.netloc}"

    async def read(self, what: str, function: Callable[..., T], *args: Any) -> T:
        """Run a call that changes nothing; when cancelled it is left to end by itself. Errors are translated."""
        return await trio.to_thread.run_sync(
            self._translated, what, function, args, abandon_on_cancel=True, limiter=self._limiter
        )

    async def change(self, what: str, function: Callable[..., T], *args: Any) -> T:
        """Run a call that changes something; when cancelled its end is waited for. Errors are translated."""
        return await trio.to_thread.run_sync(self._translated, what, function, args, limiter=self._limiter)

    def _translated(self, what: str, function: Callable[..., T], args: tuple[Any, ...]) -> T:
        try:
            return function(*args)
        except BaseException as error:  # pyo3's PanicException is no Exception
            ours = edge.translate(error, what, server_date=self._server_date)
            if ours is None or ours is error:
                raise
            raise ours from error

    def _server_date(self) -> str:
        # obstore does not show headers; asked only after the store complained about our clock.
        try:
            return self.signed_get("list-type=2&max-keys=1").date
        except botocore.exceptions.BotoCoreError:
            return ""  # the complaint itself is what has to be reported

    def signed_get(self, query: str) -> Reply:
        """GET of the bucket itself with an encoded query. In a thread; raises botocore's exceptions."""
        request = AWSRequest("GET", f"{self.base_url}?{query}")
        if self._credentials is not None:
            S3SigV4Auth(self._credentials.get_frozen_credentials(), "s3", self.region).add_auth(request)
        response = self._http.send(request.prepare())
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Reply(response.status_code, headers, response.content)

    def close(self) -> None:
        """Close idle connections. obstore's close with the object."""
        if self.light is not None:
            self.light.close()
        self._http.close()
        self.slow.close()


class _Models(Loader):
    """Loads descriptions of services (S3, and those that credentials come from) without a look into 400 others.

    botocore asks for all that have a description of some type before it loads one: half of the time of a first client.
    """

    def list_available_services(self, type_name: str) -> list[str]:
        """Folders that may be services; which of them are is seen when one is loaded."""
        return sorted({name for path in self.search_paths if os.path.isdir(path) for name in os.listdir(path)})

    def load_service_model(self, service_name: str, type_name: str, api_version: str | None = None) -> Any:
        """Raises UnknownServiceError as botocore's own does, on which a client does without some types."""
        try:
            return super().load_service_model(service_name, type_name, api_version)
        except UnknownServiceError:
            raise
        except DataNotFoundError as error:
            raise UnknownServiceError(service_name=service_name, known_service_names=type_name) from error


def _models(session: botocore.session.Session) -> _Models:
    """With the user's own folders of descriptions (AWS_DATA_PATH), as botocore's own has them."""
    folders = session.get_config_variable("data_path")
    paths = folders.split(os.pathsep) if folders else []
    return _Models([os.path.expanduser(os.path.expandvars(path)) for path in paths])


def _session(source: Source, settings: StoreSettings) -> botocore.session.Session:
    session = botocore.session.Session(profile=settings.profile)
    try:
        session.get_scoped_config()
    except botocore.exceptions.ProfileNotFound:
        raise UsageError(f"profile {settings.profile!r}: not in the AWS configuration files") from None
    except botocore.exceptions.BotoCoreError as error:
        raise UsageError(f"the AWS configuration cannot be read: {error}") from None
    session.register_component("data_loader", _models(session))
    if settings.access_key is not None or settings.secret_key is not None:
        if not settings.access_key or not settings.secret_key:
            raise UsageError(f"{source.url}: an access key and a secret key are needed, only one was given")
        session.set_credentials(settings.access_key, settings.secret_key, settings.session_token)
    return session


def _credentials(session: botocore.session.Session, source: Source) -> Credentials:
    ways = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile of ~/.aws/credentials"
    try:
        found = session.get_credentials()
    except botocore.exceptions.BotoCoreError as error:
        raise UsageError(f"{source.url}: the credentials cannot be read ({error}); {ways}") from None
    if found is None:
        raise UsageError(f"{source.url}: no credentials; {ways}")
    return found


def _verify(session: botocore.session.Session, settings: StoreSettings) -> bool | str:
    if not settings.verify_tls:
        urllib3.disable_warnings(InsecureRequestWarning)  # it was asked for; a warning for each request says nothing
        return False
    bundle = settings.ca_bundle or session.get_config_variable("ca_bundle")
    if bundle and not Path(bundle).is_file():
        raise UsageError(f"CA bundle {bundle!r}: no such file")
    return bundle or True


def _slow_client(
    session: botocore.session.Session, settings: StoreSettings, region: str, verify: bool | str
) -> S3Client:
    def make(addressing: str) -> S3Client:
        try:
            client = session.create_client(
                "s3",
                region_name=region,
                endpoint_url=settings.endpoint,
                verify=verify,
                config=_config(settings, addressing),
            )
        except (ValueError, botocore.exceptions.BotoCoreError) as error:
            raise UsageError(f"endpoint {settings.endpoint!r}: {error}") from None
        return cast("S3Client", client)

    client = make(settings.addressing)
    host = urlsplit(client.meta.endpoint_url).hostname or ""
    if settings.addressing == "auto" and ".amazonaws." not in host:
        # botocore would put the bucket before any host name; servers other than AWS rarely have such a DNS.
        client.close()
        client = make("path")
    return client


def _config(settings: StoreSettings, addressing: str) -> Config:
    options: dict[str, Any] = {"signature_version": UNSIGNED} if settings.anonymous else {}
    return Config(
        connect_timeout=settings.connect_timeout_s,
        read_timeout=settings.attempt_timeout_s,
        max_pool_connections=settings.connections,
        retries={"total_max_attempts": 1},
        # Every body is signed by its SHA-256, over https too: the server then refuses what was damaged on its way.
        s3=cast("Any", {"addressing_style": addressing, "payload_signing_enabled": True}),
        # CRC trailers are refused by older servers, and the ETag is checked anyway.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        **options,
    )


def _light(client: Client, verify: bool | str, credentials: Credentials | None) -> Light:
    settings, url = client.settings, urlsplit(client.base_url)
    secure = url.scheme == "https"
    address = Address(url.hostname or "", url.port or (443 if secure else 80), _tls(verify) if secure else None)
    connections = Connections(
        address,
        connect_timeout_s=settings.connect_timeout_s,
        timeout_s=settings.attempt_timeout_s,
        idle_max=settings.connections,
    )
    place = Place(url.netloc, url.path.rstrip("/"), client.region)
    return Light(connections, place, credentials, client.encryption)


def _tls(verify: bool | str) -> ssl.SSLContext:
    if verify is False:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    return ssl.create_default_context(
        cafile=verify if isinstance(verify, str) else get_cert_path(True)  # the authorities that botocore trusts
    )


def _base_url(client: S3Client, bucket: str) -> str:
    # botocore knows where a bucket is (path or host, endpoint variables, profiles); a presigned URL tells.
    try:
        url = client.generate_presigned_url("list_objects_v2", Params={"Bucket": bucket})
    except botocore.exceptions.BotoCoreError as error:
        raise UsageError(f"bucket {bucket!r} at {client.meta.endpoint_url}: {error}") from None
    return url.partition("?")[0]


def _fast_store(client: Client, verify: bool | str, credentials: Credentials | None) -> FastStore:
    settings = client.settings
    virtual = urlsplit(client.base_url).path in ("", "/")
    # obstore reads AWS_* from the environment; each variable that could contradict is named here.
    config: S3Config = {
        "endpoint": client.endpoint,
        "aws_endpoint_url_s3": client.endpoint,
        "region": client.region,
        "virtual_hosted_style_request": virtual,
        "disable_bulk_delete": True,  # DeleteObjects answers 200 for a refusal
        "skip_signature": credentials is None,
        "unsigned_payload": False,
    }
    config.update(client.encryption.fast())
    if settings.checksum != "off":
        config["checksum_algorithm"] = settings.checksum
    options: ClientConfig = {
        "allow_http": client.endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=settings.connect_timeout_s),
        "read_timeout": timedelta(seconds=settings.attempt_timeout_s),
        "timeout": timedelta(seconds=settings.attempt_timeout_s * _WHOLE_REQUEST),
    }
    if verify is False:
        options["allow_invalid_certificates"] = True
    elif isinstance(verify, str):
        options["root_certificate"] = Path(verify).read_bytes()
    provider: Callable[[], S3Credential] | None = None
    if credentials is not None:
        provider = _provider(credentials)
    return FastStore(
        client.bucket,
        config=config,
        client_options=options,
        retry_config={"max_retries": 0},
        credential_provider=provider,
    )


def _provider(credentials: Credentials) -> Callable[[], S3Credential]:
    def current() -> S3Credential:
        frozen = credentials.get_frozen_credentials()
        return {
            "access_key_id": str(frozen.access_key),
            "secret_access_key": str(frozen.secret_key),
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _CREDENTIAL_TTL,
        }

    return current


async def connect(source: Source, settings: StoreSettings) -> Client:
    """Read the AWS configuration and make the clients; nothing is sent to the store yet. Raises UsageError."""
    try:
        return await trio.to_thread.run_sync(Client, source, settings)
    except S3volError:
        raise
    except Exception as error:
        ours = edge.translate(error, source.url)
        if ours is None:
            raise
        raise UsageError(str(ours)) from error
