"""The site of all Django contestants. What differs comes in the environment."""

import os

SECRET_KEY = "only-for-benchmarks-" + "x" * 50
ALLOWED_HOSTS = ["*"]
USE_TZ = True
ROOT_URLCONF = "notifications.urls"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "channels",
    "notifications",
]
DATABASE = os.environ.get("BENCH_DATABASE", ":memory:")
if DATABASE == "postgresql":  # benchmarks.postgres tells libpq where it is
    DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": os.environ["PGDATABASE"]}}
else:
    DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": DATABASE}}

REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:1/0")
LAYER = os.environ.get("BENCH_LAYER", "notifications.layers.RedisPubSubLayer")
AUTHORIZE, _, FUNCTION = os.environ.get("BENCH_AUTHORIZE", "AUTHORIZE=may_watch").partition("=")
NOTIFICATIONS = {
    "REDIS_URL": REDIS_URL,
    "SHARDS": int(os.environ.get("BENCH_SHARDS", "1")),
    # No state: clients begin with nothing, as those of the peers do.
    "TOPICS": {"upload": {AUTHORIZE: f"benchmarks.peers.ours.{FUNCTION}", "STATE": False}},
}
CHANNEL_LAYERS = {"default": {"BACKEND": LAYER, "CONFIG": {"hosts": [REDIS_URL]}}}
if ".core" in LAYER:
    # It drops above 100 messages a process, and redis-py 8 ends its blocking reads after 5 s: give it what it needs.
    CHANNEL_LAYERS["default"]["CONFIG"] = {
        "hosts": [{"address": REDIS_URL, "socket_timeout": None}],
        "capacity": 1_000_000,
    }
