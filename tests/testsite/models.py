import uuid

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.db import models


class UuidUser(AbstractBaseUser):
    """A user model with a key that is no number; tests switch to it with ``AUTH_USER_MODEL``."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    name = models.CharField(max_length=50, unique=True)
    is_active = models.BooleanField(default=True)

    USERNAME_FIELD = "name"
    objects = BaseUserManager()
    is_staff = True

    def has_perm(self, permission: str, obj: object = None) -> bool:
        """Allow everything in the admin."""
        return True

    def has_module_perms(self, app_label: str) -> bool:
        return True


class CompositeUser(AbstractBaseUser):
    """A user model whose key has two parts; tests switch to it with ``AUTH_USER_MODEL``."""

    pk = models.CompositePrimaryKey("firm", "number")
    firm = models.UUIDField(default=uuid.uuid4)
    number = models.IntegerField()
    name = models.CharField(max_length=50, unique=True)
    is_active = models.BooleanField(default=True)

    USERNAME_FIELD = "name"
    objects = BaseUserManager()


class Account(AbstractBaseUser):
    """A user model of which there are models that share its rows; each of them can be ``AUTH_USER_MODEL``."""

    name = models.CharField(max_length=50, unique=True)
    is_active = models.BooleanField(default=True)

    USERNAME_FIELD = "name"
    objects = BaseUserManager()


class AccountProxy(Account):
    class Meta:
        proxy = True


class Member(Account):
    """A child in a table of its own, with its parent's key."""


class Pupil(Account):
    """A child in a table of its own, with a key of its own."""

    number = models.AutoField(primary_key=True)
    account = models.OneToOneField(Account, models.CASCADE, parent_link=True)
