"""The ingress's configuration is a function of what is published."""

from hypothesis import given
from hypothesis import strategies as st

from hutch.rules.lbplan import PublishedEndpoint, TaskApi, configuration

endpoints = st.lists(
    st.builds(
        PublishedEndpoint,
        host_port=st.integers(1, 65535),
        task_id=st.text("0123456789abcdef", min_size=32, max_size=32),
        container_port=st.integers(1, 65535),
        address=st.ip_addresses(v=4).map(str),
    ),
    unique_by=lambda e: e.host_port,
)


@given(endpoints, st.randoms())
def test_the_order_of_publishing_does_not_matter(published: list[PublishedEndpoint], rng: object) -> None:
    shuffled = list(published)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = (
        configuration(e, bind_address="127.0.0.1", stats_socket="/run/s") for e in (published, shuffled)
    )
    assert one == other
    for e in published:
        assert (
            f"listen p{e.host_port}\n    bind 127.0.0.1:{e.host_port}\n"
            f"    server {e.task_id[:12]} {e.address}:{e.container_port}\n"
        ) in one


def test_privileges_and_addresses() -> None:
    text = configuration([], bind_address="::1", stats_socket="/run/s", user="haproxy", max_connections=7)
    assert "    user haproxy\n    group haproxy\n" in text and "    maxconn 7\n" in text
    assert "user" not in configuration([], bind_address="127.0.0.1", stats_socket="/run/s")
    endpoint = PublishedEndpoint(host_port=80, task_id="a" * 32, container_port=8080, address="10.0.0.5")
    assert "    bind [::1]:80\n" in configuration([endpoint], bind_address="::1", stats_socket="/run/s")


def test_the_api_is_heard_on_the_bridge_only() -> None:
    api = TaskApi(address="169.254.170.2", port=14566, link="hutch-0a1b2c3d", server="127.0.0.1:4566")
    text = configuration([], bind_address="127.0.0.1", stats_socket="/run/s", task_api=api)
    assert "listen api\n    bind 169.254.170.2:14566 interface hutch-0a1b2c3d\n" in text
    assert "    server control 127.0.0.1:4566\n" in text
