import sys
from importlib.util import find_spec

from django.apps import AppConfig


class NotificationsConfig(AppConfig):
    name = "notifications"
    verbose_name = "Notifications"

    def ready(self) -> None:
        from . import (
            checks,  # noqa: F401  both register themselves
            devserver,
        )
        from .access import receivers  # noqa: F401  both register themselves

        devserver.accompany(sys.argv)

        if find_spec("prometheus_client") is not None:
            from .monitoring import prometheus

            prometheus.install()
