"""When what was told to an API server is in force: CRDs and RBAC take effect a moment after they are stored."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from kubernetes import client
from patience import SLACK

from equipoise_cluster import Cluster


def until(holds: Callable[[], Any], otherwise: Callable[[], str] = lambda: "", seconds: float = SLACK) -> Any:
    """Wait until it holds; fail with what `otherwise` says. Blocks."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:g} s: {otherwise()}")
        time.sleep(0.05)
    return found


def crds_served(cluster: Cluster) -> None:
    """Wait until both kinds can be asked for. Not `kubectl wait`: it fails where there is no condition yet."""

    def served() -> str:
        return cluster.kubectl("api-resources", "--api-group=equipoise.dev", "--output=name")

    until(lambda: len(served().split()) == 2, lambda: f"the CRDs are not served: {served()}")


def permitted(cluster: Cluster, user: str, asked: Iterable[dict[str, str]]) -> None:
    """Wait until the API server's authorizer knows the roles that let `user` do all of this."""
    reviews = client.AuthorizationV1Api(cluster.admin)
    for attributes in asked:
        review = client.V1SubjectAccessReview(
            spec=client.V1SubjectAccessReviewSpec(
                user=user, resource_attributes=client.V1ResourceAttributes(**attributes)
            )
        )
        until(
            lambda review=review: reviews.create_subject_access_review(review).status.allowed,
            lambda attributes=attributes: f"{user} may not {attributes}",
        )
