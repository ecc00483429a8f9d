"""The key of a request, and the user whom the key may speak for."""

import hashlib
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import jwt
import yaml

from jaxalign.errors import InputError
from jaxalign.files import expand_user, write_aside
from jaxalign.serve.api_errors import ApiError

WEBUI_TOKEN = "x-openwebui-user-jwt"
WEBUI_USER = "x-openwebui-user-id"
_JWT, _USER = "X-OpenWebUI-User-Jwt", "X-OpenWebUI-User-Id"
"""The same headers, as messages name them."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FIELDS = {"name", "sha256", "user", "acts_for"}
_KEY_BYTES = 32
_LONGEST_USER = 256
_LEEWAY_SECONDS = 30  # by which the clock of open-webui may differ
_A_USER = f"a text of 1 to {_LONGEST_USER} characters, none of them null"
_REMEDY = "write it with `jaxalign serve --keys FILE --new-key NAME`"


def _is_user(value: object) -> TypeGuard[str]:
    """Whether a value can be the id of a user; PostgreSQL keeps no null characters."""
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_USER and "\0" not in value


@dataclass(frozen=True)
class Key:
    """One key, of which only the hash is known.

    Attributes:
        name: in which the ids of its users lie; also in logs.
        sha256: of the key, as hexadecimal digits.
        user: the one user that it speaks for; None where it may name any.
    """

    name: str
    sha256: str
    user: str | None = None


LOCAL = Key("local", "")
"""Stands for requests on loopback, where no keys are set up."""


@dataclass(frozen=True)
class Caller:
    """The key and the user of a request.

    Attributes:
        key: that it came with.
        user: id with the namespace of the key; None where no user is named.
    """

    key: Key
    user: str | None

    @property
    def shown(self) -> str | None:
        """The user's id as the client knows it."""
        return None if self.user is None else self.user.removeprefix(f"{self.key.name}:")

    def require_user(self, place: str = "user") -> str:
        """Return the user, or refuse a request without one.

        Args:
            place: where a request names its user.

        Raises:
            ApiError: no user is named.
        """
        if self.user is None:
            raise ApiError(
                400,
                f"No user is named; expected `{place}` (or a header of identity), since rows are "
                "kept for one user alone.",
                "user_required",
                place,
            )
        return self.user


def read_keys(path: str | Path) -> dict[str, Key]:
    """Return the keys of a file by their hash.

    Args:
        path: YAML: a list of `name`, `sha256`, and either `user: ID` or `acts_for: any`.

    Raises:
        InputError: the file is missing, is open to others, or holds something else.
    """
    path = expand_user(path)
    try:
        mode = path.stat().st_mode
        entries = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: {_REMEDY}.") from None
    # YAML makes values of some texts, such as dates, and a date may be none.
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read ({error}): {_REMEDY}.") from None
    if mode & 0o077:
        raise InputError(
            f"{path} can be read by others (mode {mode & 0o777:o}); expected mode 600: change it "
            "with chmod."
        )
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path} holds no list of keys: {_REMEDY}.")
    keys = [_key(entry, f"{path}, entry {number}") for number, entry in enumerate(entries, 1)]
    for field in ("name", "sha256"):
        if len({getattr(key, field) for key in keys}) < len(keys):
            raise InputError(f"{path}: two entries have one {field}, expected entries that differ.")
    return {key.sha256: key for key in keys}


def _key(entry: object, where: str) -> Key:
    fields = entry if isinstance(entry, Mapping) else {}
    name, digest = fields.get("name"), fields.get("sha256")
    user, acts_for = fields.get("user"), fields.get("acts_for")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(
            f"{where}: found the name {name!r}, expected letters, digits and any of _.-: {_REMEDY}."
        )
    if name == LOCAL.name:
        raise InputError(
            f"{where}: found the name {name!r}, which stands for requests without keys; expected "
            "another name."
        )
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise InputError(f"{where}: found no sha256 of 64 hexadecimal digits: {_REMEDY}.")
    bound = _is_user(user)
    if bound == (acts_for == "any") or not fields.keys() <= _FIELDS:
        raise InputError(
            f"{where}: expected name, sha256 and either `user: ID` or `acts_for: any`; correct it."
        )
    return Key(name, digest, user if _is_user(user) else None)


def add_key(path: str | Path, name: str, user: str | None = None) -> str:
    """Draw a key, add its hash to a file, and return it; it cannot be read again.

    Args:
        path: the file, made if needed, for its owner alone.
        name: of the key.
        user: whom it speaks for; None for any user that a request names.

    Raises:
        InputError: the name is taken or cannot be used, or the file cannot be read.
    """
    if user is not None and not _is_user(user):
        raise InputError(f"--key-user {user!r:.40}: expected {_A_USER}; correct it.")
    path = expand_user(path)
    known = list(read_keys(path).values()) if path.exists() else []
    if not _NAME.fullmatch(name) or name in {LOCAL.name, *(key.name for key in known)}:
        raise InputError(
            f"--new-key {name}: found a name that is taken or has other characters than letters, "
            "digits and _.-; give another."
        )
    key = f"sk-jaxalign-{secrets.token_urlsafe(_KEY_BYTES)}"
    entries = [_entry(one) for one in (*known, Key(name, hash_key(key), user))]
    with write_aside(path) as aside:
        aside.touch(0o600)
        os.chmod(aside, 0o600)
        aside.write_text(yaml.safe_dump(entries, sort_keys=False), "utf-8")
    return key


def _entry(key: Key) -> dict[str, str]:
    whom = {"acts_for": "any"} if key.user is None else {"user": key.user}
    return {"name": key.name, "sha256": key.sha256, **whom}


def hash_key(key: str) -> str:
    """Return the hash of a key, which has 256 random bits and needs no salt."""
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


@dataclass(frozen=True)
class CallerGate:
    """Finds the key and the user of a request.

    Attributes:
        keys: by their hash; empty on loopback without keys.
        webui_secret: of the signed identities of open-webui, None where there is none.
        webui_issuer: who must have signed them.
    """

    keys: Mapping[str, Key]
    webui_secret: str | None = None
    webui_issuer: str = "open-webui"

    def key_of(self, headers: Mapping[str, str]) -> Key:
        """Return the key of a request.

        Raises:
            ApiError: there is none, or it is not known.
        """
        if not self.keys:
            return LOCAL
        scheme, _, given = headers.get("authorization", "").partition(" ")
        key = self.keys.get(hash_key(given.strip())) if scheme.lower() == "bearer" else None
        if key is None:
            raise ApiError(
                401,
                "No known key was sent; expected the header `Authorization: Bearer KEY`.",
                "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return key

    def caller(
        self,
        headers: Mapping[str, str],
        by_field: Mapping[str, object],
    ) -> Caller:
        """Return the key and the user of a request.

        Args:
            headers: of the request, names in lower case.
            by_field: users that its body or address names, by the field; None for none.

        Raises:
            ApiError: no known key, a user whom the key does not speak for, a signed identity that
                cannot be verified, a header that should be signed, or names that disagree.
        """
        key = self.key_of(headers)
        named = self._named(headers, by_field)
        if key.user is not None:
            foreign = set(named.values()) - {key.user}
            if foreign:
                raise ApiError(
                    403,
                    "The request names another user than the one that its key is bound to; leave "
                    "the name out, or use a key that acts for any user.",
                    "user_not_allowed",
                )
            return Caller(key, f"{key.name}:{key.user}")
        if len(set(named.values())) > 1:
            raise ApiError(
                400,
                f"The request names different users in {' and '.join(named)}; expected one.",
                "users_disagree",
            )
        if self.webui_secret is not None and _USER in named and _JWT not in named:
            raise ApiError(
                401,
                f"{_USER} is not signed, and this service has the secret of signed identities; "
                f"expected {_JWT}: set FORWARD_USER_INFO_HEADER_JWT_SECRET in open-webui.",
                "identity_not_signed",
            )
        name = next(iter(named.values()), None)
        return Caller(key, None if name is None else f"{key.name}:{name}")

    def _named(
        self,
        headers: Mapping[str, str],
        by_field: Mapping[str, object],
    ) -> dict[str, str]:
        """The users that a request names, by where it does."""
        found: dict[str, object] = {}
        if WEBUI_TOKEN in headers:
            found[_JWT] = self._verified(headers[WEBUI_TOKEN])
        found |= {_USER: headers.get(WEBUI_USER), **by_field}
        given = {place: value for place, value in found.items() if value is not None}
        for place, value in given.items():
            if not _is_user(value):
                raise ApiError(
                    400,
                    f"{place}: expected {_A_USER}.",
                    "invalid_user",
                    place,
                )
        return {place: str(value) for place, value in given.items()}

    def _verified(self, token: str) -> object:
        """The user of a signed identity; only HS256, with an issuer and before it expires."""
        if self.webui_secret is None:
            raise ApiError(
                401,
                f"{_JWT} cannot be verified: the service has no secret for it; set "
                "JAXALIGN_WEBUI_SECRET to open-webui's FORWARD_USER_INFO_HEADER_JWT_SECRET.",
                "invalid_token",
            )
        try:
            claims = jwt.decode(
                token,
                self.webui_secret,
                algorithms=["HS256"],
                issuer=self.webui_issuer,
                leeway=_LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise ApiError(401, f"{_JWT} cannot be verified ({error}).", "invalid_token") from None
        return claims["sub"]
