"""
The demo site's settings. Everything that differs between machines comes from the environment:
REDIS_URL, DATABASE_PATH, SECRET_KEY, DEBUG, ALLOWED_HOSTS (comma-separated) and PORT.
"""

import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent

DEBUG = os.environ.get("DEBUG", "1") == "1"
"""On by default: this is a demo, and ``manage.py demo`` listens on 127.0.0.1 only."""

if DEBUG:
    SECRET_KEY = os.environ.get("SECRET_KEY", "django-insecure-for-the-demo-on-your-own-machine-only")
else:
    SECRET_KEY = os.environ["SECRET_KEY"]

ALLOWED_HOSTS = [host for host in os.environ.get("ALLOWED_HOSTS", "").split(",") if host]
PORT = int(os.environ.get("PORT", "8000"))
REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
DATABASE_PATH = Path(os.environ.get("DATABASE_PATH", BASE_DIR / "var" / "demo.sqlite3"))
MEDIA_ROOT = DATABASE_PATH.parent / "media"
DATABASE_PATH.parent.mkdir(parents=True, exist_ok=True)  # SQLite makes the file, not the directory

INSTALLED_APPS = [
    "daphne",  # before staticfiles: its runserver serves ASGI
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "channels",
    "project",  # before the app whose page it puts into its own
    "notifications",
    "notifications.inbox",
    "project.uploads",
    "project.imports",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "project.csp.content_security_policy",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "project.urls"
ASGI_APPLICATION = "project.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": DATABASE_PATH,
        "OPTIONS": {
            # Web server and workers write at the same time. IMMEDIATE, because a transaction that begins by
            # reading cannot wait for its turn to write: it gets "database is locked" whatever the time-out.
            "timeout": 10,
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        },
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "notifications.layers.RedisPubSubLayer",
        "CONFIG": {"hosts": [REDIS_URL]},
    }
}
NOTIFICATIONS = {
    "REDIS_URL": REDIS_URL,
    "TOPICS": {
        "upload": {"AUTHORIZE": "project.uploads.permissions.may_watch"},
        "job": {},  # the page with the imports is their owner's, and gives them a grant for each bar
    },
}

LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "uploads"
LOGOUT_REDIRECT_URL = "login"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
]

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True

STATIC_URL = "static/"
STATIC_ROOT = DATABASE_PATH.parent / "static"

if not DEBUG:
    # Daphne speaks plain HTTP behind a proxy that ends TLS and must set this header itself, always.
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_SSL_REDIRECT = True
    SECURE_HSTS_SECONDS = 365 * 24 * 3600
    SESSION_COOKIE_SECURE = True
    CSRF_COOKIE_SECURE = True
    # HSTS for all subdomains, and for good, is a decision about a whole domain: not the demo's to take.
    SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W021"]

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"short": {"format": "%(levelname)s %(name)s: %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "short"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
    "loggers": {
        "django": {"handlers": [], "level": "WARNING", "propagate": True},
        "notifications": {"level": "INFO"},
        "project": {"level": "INFO"},
    },
}

UPLOAD_MAX_FILES = 20
"""Maximum number of files in one request."""
UPLOAD_MAX_SIZE = 50 * 1024 * 1024
"""Maximum size of a file, in bytes."""
CLAIM_LEASE = float(os.environ.get("CLAIM_LEASE", "15"))
"""Seconds without a sign of life from its worker after which another worker may take over a job."""
DEMO_PACE = float(os.environ.get("DEMO_PACE", "0.15" if DEBUG else "0"))
"""Seconds the worker rests after every chunk, so that a person sees the bar of a small file move."""
IMPORT_MAX_SIZE = 1024 * 1024
"""Maximum size of a file to import, in bytes; ``imports/tables.py`` has the other limits."""
KILL_SWITCH = os.environ.get("KILL_SWITCH", "") if DEBUG else ""
"""Where the page's button reaches the demo command to kill the listener; without it there is no button."""
