"""The settings of the test site: the smallest site that can install the app."""

import json
import os

SECRET_KEY = "only-for-tests-" + "x" * 50
DEBUG = False
USE_TZ = True
ALLOWED_HOSTS = ["testserver", "localhost", "127.0.0.1"]
ROOT_URLCONF = "tests.testsite.urls"
ASGI_APPLICATION = "tests.testsite.asgi.application"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "channels",
    "notifications",
    "notifications.inbox",
    "tests.testsite",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
            ]
        },
    }
]
STATIC_URL = "static/"
STATIC_ROOT = None
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("DATABASE_PATH", ":memory:"),
        "OPTIONS": {"timeout": 20},
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"

REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:1/0")
NOTIFICATIONS = {
    "REDIS_URL": REDIS_URL,
    "TOPICS": {
        "upload": {"AUTHORIZE": "tests.testsite.permissions.may_watch"},
        "order": {
            "AUTHORIZE": "tests.testsite.permissions.may_watch_order",
            "CLEAN_ID": "tests.testsite.permissions.clean_order",
        },
        "job": {"AUTHORIZE": "tests.testsite.permissions.may_watch"},
        "closed": {},
    },
}
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {"hosts": [REDIS_URL]},
    }
}

# What tests/processes.py gives to one process or site; its NOTIFICATIONS is merged into ours.
for _name, _value in json.loads(os.environ.get("TEST_SETTINGS", "{}")).items():
    globals()[_name] = {**NOTIFICATIONS, **_value} if _name == "NOTIFICATIONS" else _value
    if _name == "CHANNEL_LAYER_BACKEND":
        CHANNEL_LAYERS["default"]["BACKEND"] = _value

if any("mysql" in _database["ENGINE"] for _database in DATABASES.values()):
    import tests.mysqldb  # noqa: F401  Django's backend imports what it puts in place
