"""
A program that ends the access of users, through each of the models that share their rows.

For each change it writes, as JSON, the model, the change, and the primary key of the user.
"""

import json
import sys
from itertools import count, product

import django
from django.core.management import call_command

MODELS = ("Account", "AccountProxy", "Member", "Pupil")


def deactivate(instance):
    instance.is_active = False
    instance.save()


def change_password(instance):
    instance.set_password("new")
    instance.save(update_fields=["password"])


def rename(instance):
    """Change nothing that matters: of this nobody should be told."""
    instance.name += "!"
    instance.save()


def delete(instance):
    instance.delete()


CHANGES = (deactivate, change_password, rename, delete)


def main():
    from django.apps import apps
    from django.contrib.auth import get_user_model

    call_command("migrate", run_syncdb=True, verbosity=0)
    user_model, account = get_user_model(), apps.get_model("testsite", "Account")
    numbers = count(100)  # no user has the key of another, whatever the model

    def new_row(*models):
        """Make a row of ``Account``, and the rows of it in the tables of other models; return its key."""
        row = account.objects.create(name=f"user {next(numbers)}", password="old")
        for model in {model._meta.concrete_model for model in models} - {account}:
            child = model(pk=next(numbers) * 10)
            setattr(child, model._meta.get_ancestor_link(account).attname, row.pk)
            child.save_base(raw=True)  # without the parent, which is there
        return row.pk

    for name, change in product(MODELS, CHANGES):
        model = apps.get_model("testsite", name)
        if change is delete and {name, user_model.__name__} == {"Member", "Pupil"}:
            continue  # Django cannot: it does not know of the row in the other child's table
        row = new_row(user_model, model)
        user = user_model.objects.get(id=row)
        change(model.objects.get(id=row))
        if change is not rename:
            sys.stdout.write(json.dumps([name, change.__name__, str(user.pk)]) + "\n")


if __name__ == "__main__":
    django.setup()
    main()
