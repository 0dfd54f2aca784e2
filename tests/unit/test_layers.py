"""Which layers scripts can reach."""

from notifications.layers import RedisPubSubLayer, direct
from tests.cases import cases


@cases(
    ("site", "host", "reached"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0", True),
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/5", True),  # databases share all channels
        ("redis://127.0.0.1", ("127.0.0.1", 6379), True),
        ("redis://127.0.0.1", {"host": "127.0.0.1", "port": "6379"}, True),
        ("redis://localhost", None, True),
        ("redis://127.0.0.1:6380", None, True),
        ("embedded", "embedded", True),
        ("embedded", None, True),
        ("embedded", "redis://localhost", False),
        ("redis://:word@127.0.0.1", "redis://default:word@127.0.0.1", True),
        ("redis://127.0.0.1", "redis://127.0.0.1:6380", False),
        ("redis://127.0.0.1", "redis://localhost", False),
        ("redis://site:word@127.0.0.1", "redis://layer:word@127.0.0.1", False),
        ("unix:///run/redis.sock", "unix:///run/redis.sock", True),
        ("unix:///run/redis.sock", "redis://localhost", False),
        ("redis://127.0.0.1", {"sentinels": [("127.0.0.1", 26379)], "master_name": "site"}, False),
        ("redis+sentinel://h/site", {"sentinels": [("h", 26379)], "master_name": "site"}, True),
        ("redis+sentinel://a,b/site/3", "redis+sentinel://b,a:26379/site", True),
        ("redis+sentinel://me:word@a,b/site", "redis+sentinel://me:word@a,b/site?sentinel_password=hush", True),
        ("redis+sentinel://a,b/site", "redis+sentinel://a,b/other", False),
        ("redis+sentinel://a,b/site", "redis+sentinel://a,c/site", False),
        ("redis+sentinel://me:word@a/site", "redis+sentinel://you:word@a/site", False),
        ("redis+sentinel://a:6379/site", "redis://a:6379", False),
    ],
)
def test_scripts_reach_the_groups_of_a_layer_on_the_same_server_and_account(settings, site, host, reached):
    """Otherwise the listener's own connection to the layer is the only one that does."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "REDIS_URL": site}
    layer = RedisPubSubLayer(hosts=None if host is None else [host], prefix="shop")

    assert direct(layer, "user.1") == ("shop/group/user.1" if reached else None)


def test_other_layers_say_nothing():
    """And this app asks nothing of them."""
    assert direct(object(), "user.1") is None
    assert direct(None, "user.1") is None
