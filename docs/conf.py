"""
The documentation site: `make docs`.

Its sources are the Markdown files as GitHub shows them, README.md among them, so the root of the sources is that
of the repository.
"""

import sys
from pathlib import Path

import django
from django.conf import settings

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
settings.configure(
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "notifications", "notifications.inbox"],
    NOTIFICATIONS={"REDIS_URL": "redis://127.0.0.1:6379/0"},
)
django.setup()  # the reference is made of the docstrings of imported modules

project = "notifications"
author = "the authors of notifications"
html_title = "notifications for Django"
html_theme = "furo"
html_theme_options = {"navigation_with_keys": True}
html_show_copyright = False

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**", "benchmarks/README.md"]
exclude_patterns = ["**/requirements.txt"]
myst_heading_anchors = 4  # the anchors that GitHub makes
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
# What a site may have and this environment need not.
autodoc_mock_imports = ["billiard", "celery", "django_tasks", "dramatiq", "rq"]
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True


def begin_at_the_index(app, error):
    """Let the folder open with the first page, which lies where its source lies."""
    if error is None:
        target = Path(app.outdir) / "index.html"
        target.write_text('<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html">\n')


def setup(app):
    app.connect("build-finished", begin_at_the_index)
