"""The pages of the imports. They have no script of their own: a bar is one template tag."""

import uuid
from pathlib import Path

from django import forms
from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.contrib.staticfiles import finders
from django.core.files.base import ContentFile
from django.core.files.uploadedfile import UploadedFile
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.template.defaultfilters import filesizeformat
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from notifications import announce
from project.imports.models import Import
from project.imports.tables import COLUMNS, MAX_ROWS

SAMPLE = "project/places.csv"
"""From zone.tab and iso3166.tab of the tz database, both in the public domain; two wrong rows were added."""
LIST_LENGTH = 10
"""Number of imports on the page, the newest ones."""
TABLE_LENGTH = 100
"""Number of rows of one import on its page."""


class ImportForm(forms.Form):
    file = forms.FileField(label="CSV file", max_length=255)

    def clean_file(self) -> UploadedFile:
        file = self.cleaned_data["file"]
        if file.size > settings.IMPORT_MAX_SIZE:
            raise forms.ValidationError(f"It is larger than {filesizeformat(settings.IMPORT_MAX_SIZE)}.")
        return file


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def import_list(request: HttpRequest) -> HttpResponse:
    """Show the newest imports; a POST puts a file into the queue, or the sample if it says so."""
    form = ImportForm(*((request.POST, request.FILES) if request.method == "POST" else ()))
    if "sample" in request.POST:
        file = ContentFile(Path(finders.find(SAMPLE)).read_bytes(), name=Path(SAMPLE).name)
    elif form.is_valid():
        file = form.cleaned_data["file"]
    else:
        context = {
            "form": form,
            "imports": Import.objects.filter(owner=request.user)[:LIST_LENGTH],
            "sample": SAMPLE,
            "columns": COLUMNS,
            "max_rows": f"{MAX_ROWS:,}",
            "max_size": settings.IMPORT_MAX_SIZE,
        }
        return render(request, "imports/import_list.html", context, status=400 if form.is_bound else 200)
    job = Import.objects.create(owner=request.user, file=file, name=file.name)
    announce(job.topic)
    return redirect("imports")


@login_required
@require_GET
def import_detail(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    """Show the rows of an import, and those that were refused."""
    job = get_object_or_404(Import, pk=pk, owner=request.user)
    context = {"import": job, "places": job.places.order_by("pk")[:TABLE_LENGTH], "count": job.places.count()}
    return render(request, "imports/import_detail.html", context)


@login_required
@require_POST
def import_clear(request: HttpRequest) -> HttpResponse:
    """Delete the finished imports with their rows and files."""
    finished = [Import.Status.SUCCEEDED, Import.Status.FAILED, Import.Status.CANCELLED]
    for job in Import.objects.filter(owner=request.user, status__in=finished):
        job.delete()
        job.file.delete(save=False)
    return redirect("imports")
