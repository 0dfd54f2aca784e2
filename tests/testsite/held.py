"""Handshakes that are held back when the file ``hold`` is there: after session and account were read."""

import time
from pathlib import Path

from django.conf import settings
from django.contrib.auth.backends import ModelBackend


def install():
    get_user = ModelBackend.get_user

    def get_user_and_hold(self, user_id):
        user = get_user(self, user_id)
        hold = Path(settings.AWAY).with_name("hold")
        try:
            hold.rename(hold.with_name("held"))
        except FileNotFoundError:
            return user
        while not hold.with_name("go on").exists():
            time.sleep(0.01)
        return user

    ModelBackend.get_user = get_user_and_hold
