"""Questions to the API server, whose refusals are answers, too.

Called by `gather` and `probe`. What may not be seen, or is not served, is no error here: the checks say what follows.
"""

from __future__ import annotations

import json
from typing import Any, Final

from kubernetes import client

from mlplatform.doctor.facts import Listed, Rule, Seen, Unseen
from mlplatform.snapshot import Object

TIMEOUT: Final = (10, 30)
"""Seconds to connect and to answer."""

PAGE: Final = 500
"""Objects in one answer of a list."""

_NOT_FOUND: Final = 404
_UNAUTHORIZED: Final = 401


class Asker:
    """Asks as whoever the client logs in.

    No answer at all, and one that does not know who asks, are raised as the client raises them.
    """

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    def get(self, path: str) -> Seen:
        """An object."""
        return self._request("GET", path)

    def list(self, path: str, selector: str = "") -> Listed:
        """The objects of a kind, less those whose labels do not match; none of a kind that is not served."""
        found: list[Object] = []
        rest = ""
        while True:
            page = self._request("GET", path, limit=str(PAGE), labelSelector=selector, **{"continue": rest})
            if isinstance(page, Unseen):
                return page
            found += (page or {}).get("items") or ()
            rest = str(((page or {}).get("metadata") or {}).get("continue") or "")
            if not rest:
                return tuple(found)

    def create(self, path: str, manifest: Object) -> Seen:
        """Makes an object; the API server's words where it will not."""
        return self._request("POST", path, manifest)

    def delete(self, path: str) -> None:
        """Deletes an object at once; one that is gone counts as deleted."""
        self._request("DELETE", path, {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0})

    def refused(
        self, rules: tuple[Rule, ...], namespace: str, user: str = "", name: str = ""
    ) -> tuple[str, ...] | Unseen:
        """What of `rules` may not be done, as ``<verb> <resource>``.

        Args:
            rules: To ask about.
            namespace: Where; empty for everywhere.
            user: Who; empty for whoever asks.
            name: Of one object; not looked at for ``create``.
        """
        found = []
        for group, resource, verbs in rules:
            plural, _, subresource = resource.partition("/")
            for verb in verbs:
                attributes = {"namespace": namespace, "verb": verb, "group": group, "resource": plural}
                attributes |= {"subresource": subresource} if subresource else {}
                attributes |= {"name": name} if name and verb != "create" else {}
                answer = self._may(attributes, user)
                if isinstance(answer, Unseen):
                    return answer
                if not answer:
                    found.append(f"{verb} {resource}")
        return tuple(found)

    def _may(self, attributes: Object, user: str) -> bool | Unseen:
        kind = "SubjectAccessReview" if user else "SelfSubjectAccessReview"
        home = user.rpartition(":")[0].replace("serviceaccount", "serviceaccounts")
        who = {"user": user, "groups": ["system:serviceaccounts", home, "system:authenticated"]} if user else {}
        spec = {"resourceAttributes": attributes, **who}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec}
        found = self._request("POST", f"/apis/authorization.k8s.io/v1/{kind.lower()}s", review)
        return found if isinstance(found, Unseen) else bool(((found or {}).get("status") or {}).get("allowed"))

    def _request(self, method: str, path: str, body: Any = None, **query: str) -> Seen:
        try:
            answer = self._api.call_api(
                path,
                method,
                query_params=[(key, value) for key, value in query.items() if value],
                header_params={"Accept": "application/json", "Content-Type": "application/json"},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=TIMEOUT,
            )
            found: Object = json.loads(answer.data)
        except client.ApiException as error:
            if error.status == _NOT_FOUND and method != "POST":
                return None
            if not error.status or error.status == _UNAUTHORIZED:
                raise
            return Unseen(_words(error))
        except ValueError:
            return Unseen(f"{path} is answered with something else than JSON; is a proxy in between?")
        return found


def _words(error: client.ApiException) -> str:
    try:
        return str(json.loads(error.body or "")["message"])
    except (ValueError, KeyError, TypeError):
        return f"{error.status} {error.reason}"
