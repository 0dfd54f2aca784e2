"""What the template tags render: escaped, under any policy, with hashed names, and whether Redis is there or not."""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.core.management import call_command
from django.template import Context, engines
from django.test import Client, RequestFactory
from django.utils.functional import SimpleLazyObject
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy

from notifications import publish, publish_to_all
from notifications.exceptions import TopicError
from notifications.logs import LogBudget
from notifications.messages import JobProgressPayload
from notifications.metrics import counts
from notifications.routing import websocket_urlpatterns
from notifications.templatetags import notifications as tags
from notifications.testing import captured
from notifications.tokens import check_grant, check_token
from notifications.topics import Topic
from tests.conftest import point_to

ROOT = Path(__file__).resolve().parents[2]
STATIC = ROOT / "notifications/static/notifications"
BROWSER = (ROOT / "docs/browser.md").read_text()
USER = User(pk=42, username="ada", password="md5$salt$hash")


def render(template: str, *, user: Any = USER, context: dict[str, Any] | None = None, **on_request: Any) -> str:
    """Render a template as a view does for this user."""
    request = RequestFactory().get("/")
    request.user = user
    for name, value in on_request.items():
        setattr(request, name, value)
    return engines["django"].from_string("{% load notifications %}" + template).render(context or {}, request)


class Elements(HTMLParser):
    """The elements of a page, each with its attributes and text, as a browser reads them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), []))

    def handle_data(self, data: str) -> None:
        if self.found:
            self.found[-1][2].append(data)


def config_of(page: str) -> dict[str, Any]:
    """Return what the page tells its scripts."""
    (config,) = [text for _, attributes, text in Elements(page).found if attributes.get("id") == "notifications-config"]
    return json.loads("".join(config))


@pytest.fixture
def no_redis(settings: SimpleNamespace) -> Iterator[None]:
    """Nobody listens where Redis should be."""
    point_to(settings, "redis://127.0.0.1:1/0")
    return


# {% notifications %}


def test_nothing_connects_for_anonymous_users(no_redis: None) -> None:
    """The page of an anonymous user has no script and asks Redis nothing."""
    before = counts.copy()

    assert render("{% notifications %}", user=AnonymousUser()) == ""
    assert counts == before


def test_guests_connect_where_the_site_admits_them(settings: SimpleNamespace, no_redis: None) -> None:
    """Their page says so, names no user, and has no position of one; without a request there is no visitor."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "GUESTS": True}

    config = config_of(render("{% notifications token_url='/token/' %}", user=AnonymousUser()))

    assert config["guest"] is True
    assert {"user_topic", "since"} & config.keys() == set()
    assert "guest" not in config_of(render("{% notifications %}"))
    template = engines["django"].from_string("{% load notifications %}a{% notifications %}b")
    assert template.render({"user": AnonymousUser()}) == "ab"


def test_guests_follow_public_topics_from_their_page_on(settings: SimpleNamespace) -> None:
    """Nothing falls between rendering and joining: of what all have, and of what a guest may read."""
    topics = {"site": {}, "news": {"PUBLIC": True}, "order": {}}
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TOPICS": topics, "GUESTS": True}
    with captured():
        id_ = publish_to_all({"n": 1})
        news = publish("news:1", {"n": 1})
        publish("order:1", {"n": 1})

        for user in (AnonymousUser(), USER):
            assert config_of(render("{% notifications %}", user=user))["positions"] == {"site:all": id_}
        text = "{% topic 'news' 1 as a %}{% topic 'order' 1 as b %}"
        text += "{{ a.since }} {{ a.grant }} {{ b.since }} {{ b.grant }}"
        assert render(text, user=AnonymousUser()) == f"{news} None None None"


def test_template_without_a_request_renders(no_redis: None) -> None:
    """A page of an error, which is rendered without a request, has no script either."""
    template = engines["django"].from_string("{% load notifications %}a{% notifications %}b")

    assert template.render({"user": USER}) == "ab"
    assert template.template.render(Context()) == "ab"


def test_page_is_rendered_while_redis_is_down(
    no_redis: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis that is away costs the page its position, is counted and logged, and nothing else."""
    monkeypatch.setattr(tags, "_log", LogBudget(tags.logger))
    before = counts["position_failed", "ConnectionError"]

    page = render("{% notifications %}")

    assert config_of(page)["since"] is None
    assert 'type="module"' in page
    assert counts["position_failed", "ConnectionError"] == before + 1
    assert "a page was rendered without a position" in caplog.text


def test_without_a_history_nobody_is_asked(settings: SimpleNamespace, no_redis: None) -> None:
    """Where users have no history there is no position, and Redis is not asked for one."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TOPICS": {"user": {"HISTORY_SIZE": 0}}}
    before = counts.copy()

    assert config_of(render("{% notifications %}"))["since"] is None
    assert counts == before


def test_transport_over_http_is_where_it_is_mounted(no_redis: None, settings: SimpleNamespace) -> None:
    """The page is told the address of the view, or that there is none, and fetches its module only when needed."""
    page = render("{% notifications %}")
    assert config_of(page)["stream_url"] == "/notifications/stream/"
    assert config_of(page)["fallback"].endswith("/static/notifications/fallback.js")  # Django keeps an old prefix
    assert [link for link in re.findall(r"<link[^>]*>", page) if "fallback" in link] == []

    settings.ROOT_URLCONF = "django.contrib.auth.urls"
    assert config_of(render("{% notifications %}"))["stream_url"] is None


@pytest.mark.parametrize("prefix", ["/", "/shop/"])
def test_socket_is_where_the_routing_has_it(no_redis: None, prefix: str, settings: SimpleNamespace) -> None:
    """The page connects to the path of ``websocket_urlpatterns``, below the site's own."""
    from django.urls import set_script_prefix

    set_script_prefix(prefix)
    try:
        assert config_of(render("{% notifications %}"))["url"] == f"{prefix}{websocket_urlpatterns[0].pattern}"
    finally:
        set_script_prefix("/")


@pytest.mark.parametrize("where", ["context", "request"])
def test_scripts_carry_the_nonce(no_redis: None, where: str) -> None:
    """Whoever makes the nonce, Django 6 or django-csp, and however lazily, each script and link has it."""

    class Lazy(SimpleLazyObject):
        def __bool__(self) -> bool:  # as Django's: false until somebody has asked for it
            return False

    nonce = Lazy(lambda: 'r4nd"m')
    given = {"context": {"csp_nonce": nonce}} if where == "context" else {"csp_nonce": nonce}

    found = Elements(render("{% notifications %}", **given)).found

    loading = [attributes for tag, attributes, _ in found if tag == "link" or attributes.get("type") == "module"]
    assert [attributes["nonce"] for attributes in loading] == ['r4nd"m'] * 4


def test_without_a_nonce_there_is_no_attribute(no_redis: None) -> None:
    """An empty nonce would look like one that was forgotten."""
    assert "nonce" not in render("{% notifications %}")


def test_nothing_is_an_inline_script(no_redis: None) -> None:
    """The only block with content is data, and data cannot end it."""
    page = render(
        "{% notifications url=url token_url=url labels=labels %}",
        context={"url": "/</script><script>alert(1)</script>", "labels": {"close": "<!--<script>", "it's": '"'}},
    )

    scripts = [(attributes, "".join(text)) for tag, attributes, text in Elements(page).found if tag == "script"]
    assert [attributes["type"] for attributes, text in scripts if text.strip()] == ["application/json"]
    assert page.count("<script") == 2
    assert not re.search(r"\son\w+=|javascript:|<style|\sstyle=", page)
    assert config_of(page)["url"] == config_of(page)["token_url"] == "/</script><script>alert(1)</script>"
    assert config_of(page)["labels"] == {"close": "<!--<script>", "it's": '"'}


def test_labels_may_be_lazy(no_redis: None) -> None:
    """Words in the language of the page are those of the moment at which it is rendered."""
    page = render("{% notifications labels=labels %}", context={"labels": {"close": gettext_lazy("Close")}})

    assert config_of(page)["labels"] == {"close": "Close"}


@pytest.mark.django_db
def test_hashed_names_of_static_files(settings: SimpleNamespace, no_redis: None, tmp_path: Path) -> None:
    """With ManifestStaticFilesStorage each file of a page is one that collectstatic has written, by its hash."""
    settings.STATIC_ROOT = str(tmp_path)
    manifest = "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"
    settings.STORAGES = {**settings.STORAGES, "staticfiles": {"BACKEND": manifest}}
    call_command("collectstatic", "--noinput", verbosity=0)

    page = render("{% notifications %}{% load notifications_inbox %}{% notification_bell %}")

    loaded = set(re.findall(r'/static/(notifications/[^"]+\.js)', page))
    assert {re.sub(r"\.[0-9a-f]{12}\.", ".", name) for name in loaded} == {
        "notifications/client.js",
        "notifications/elements.js",
        "notifications/fallback.js",
        "notifications/progress.js",
        "notifications/inbox.js",
        "notifications/start.js",
    }
    assert all(re.search(r"\.[0-9a-f]{12}\.js$", name) and (tmp_path / name).is_file() for name in loaded)


def test_modules_import_nothing_by_name() -> None:
    """Storages with hashed names do not rewrite imports: one written in a module would load another copy."""
    for path in STATIC.glob("*.js"):
        imports = re.findall(r"^import\b(?! *\()|^export .*\bfrom\b", path.read_text(), re.MULTILINE)
        assert imports == [], path


# {% upload_progress %}


def attributes_of(page: str, name: str = "upload-progress") -> dict[str, str | None]:
    ((tag, attributes, _),) = Elements(page).found
    assert tag == name
    return attributes


def test_upload_is_escaped(no_redis: None) -> None:
    """Whatever an id or a name has in it stays inside its attribute, also where somebody has called it safe."""
    hostile = SafeString('"><script>alert(1)</script>')

    page = render(
        "{% upload_progress id label=id message=id percent=40 %}", user=AnonymousUser(), context={"id": hostile}
    )

    assert attributes_of(page) == {"upload": hostile, "label": hostile, "message": hostile, "percent": "40"}


def test_what_is_not_known_is_left_out(no_redis: None) -> None:
    """None stands for no attribute; zero is a value."""
    page = render("{% upload_progress 7 percent=0 message=nothing %}", context={"nothing": None})

    assert attributes_of(page) == {"upload": "7", "percent": "0"}


def test_nothing_is_granted_unless_asked_for(no_redis: None) -> None:
    """A page that only names an id opens nothing: AUTHORIZE is asked."""
    assert attributes_of(render("{% upload_progress '7f3c' %}")) == {"upload": "7f3c"}
    assert attributes_of(render("{% upload_progress '7f3c' status_url='/a' %}"))["status-url"] == "/a"
    assert "grant" not in render("{% upload_progress '7f3c' grant=True %}", user=AnonymousUser())


def test_grant_is_for_this_user_and_upload(no_redis: None) -> None:
    """A grant that the page asked for lets its user watch this upload, and nobody else and no other."""
    grant = attributes_of(render("{% upload_progress '7f3c' grant=True %}"))["grant"]

    assert grant is not None
    assert check_grant(grant, USER, Topic("upload", "7f3c"))
    assert not check_grant(grant, User(pk=7), Topic("upload", "7f3c"))
    assert not check_grant(grant, USER, Topic("upload", "other"))


# {% progress %}


def test_job_has_a_grant_for_this_user_and_topic(no_redis: None) -> None:
    """The page's user may read this topic, nobody else and no other; none is rendered for nobody, or if not wanted."""
    given = attributes_of(render("{% progress 'job' 7 label='Import' %}"), "task-progress")
    grant = given.pop("grant")

    assert given == {"topic": "job:7", "label": "Import"}
    assert grant is not None
    assert check_grant(grant, USER, Topic("job", 7))
    assert not check_grant(grant, User(pk=7), Topic("job", 7))
    assert not check_grant(grant, USER, Topic("job", 8))
    assert "grant" not in render("{% progress 'job' 7 grant=False %}")
    assert "grant" not in render("{% progress 'job' 7 %}", user=AnonymousUser())


def test_job_that_everybody_may_read_has_no_grant(settings: SimpleNamespace, no_redis: None) -> None:
    """A grant on a PUBLIC kind is good for nothing but to cancel the job."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TOPICS": {"site": {"PUBLIC": True}}}

    assert attributes_of(render("{% progress 'site' 7 %}"), "task-progress") == {"topic": "site:7"}
    grant = attributes_of(render("{% progress 'site' 7 cancel_url='/a' %}"), "task-progress")["grant"]
    assert check_grant(grant, USER, Topic("site", 7))


@pytest.mark.parametrize("setting", ["CSRF_COOKIE_HTTPONLY", "CSRF_USE_SESSIONS"])
@pytest.mark.django_db
def test_button_has_a_token_that_the_view_accepts(settings: SimpleNamespace, setting: str) -> None:
    """What is rendered with a button cancels the job, wherever the site keeps the secret of its tokens."""
    setattr(settings, setting, True)
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "django.middleware.csrf.CsrfViewMiddleware"]
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create(username="ada"))

    page = client.get("/page/", {"template": "{% progress 'closed' 7 cancel_url='/notifications/cancel/' %}"})
    found = next(attributes for tag, attributes, _ in Elements(page.content.decode()).found if tag == "task-progress")
    form = {"topic": found["topic"], "grant": found["grant"], "csrfmiddlewaretoken": found["csrf-token"]}

    assert "Cookie" in page.headers["Vary"]
    with captured():
        assert client.post(found["cancel-url"], form).status_code == 204
    assert client.post(found["cancel-url"], form | {"csrfmiddlewaretoken": "x"}).status_code == 403


def test_token_is_rendered_only_with_a_button(no_redis: None) -> None:
    """A page without a button, or of nobody, may be cached, and has no token."""
    assert "csrf" not in render("{% progress 'job' 7 %}")
    assert render("{% progress 'job' 7 cancel_url='/a' %}", user=AnonymousUser()).count("=") == 1
    nowhere = "{% url 'no:such' as cancel_url %}{% progress 'job' 7 cancel_url=cancel_url %}"
    assert set(attributes_of(render(nowhere), "task-progress")) == {"topic", "grant"}


def test_job_is_escaped_and_what_is_not_known_is_left_out(no_redis: None) -> None:
    """Whatever an id or a text has in it stays inside its attribute; None stands for no attribute, zero is a value."""
    hostile = SafeString('"><script>alert(1)</script>')

    page = render(
        "{% progress 'job' id label=id percent=0 done=nothing status_url='/a' grant=False %}",
        context={"id": hostile, "nothing": None},
    )

    expected = {"topic": f"job:{hostile}", "label": hostile, "percent": "0", "status-url": "/a"}
    assert attributes_of(page, "task-progress") == expected


def test_what_is_no_topic_raises(no_redis: None) -> None:
    with pytest.raises(TopicError):
        render("{% progress 'nothing' 7 %}")


@pytest.mark.parametrize("mark", ["notifications", "upload_progress", "progress", "topic"])
def test_arguments_are_documented(mark: str) -> None:
    """docs/browser.md names each argument of the tags, and no other."""
    tag = getattr(tags, mark)
    own = {name for name, argument in signature(tag).parameters.items() if argument.kind != argument.VAR_KEYWORD}
    more = {
        "upload_progress": {"label", "status", "stage", "percent", "message"},
        "progress": {"label", *JobProgressPayload.__struct_fields__} - {"id", "eta"},
    }

    assert stated(mark) == own - {"context"} | more.get(mark, set())


def test_words_are_documented() -> None:
    """docs/browser.md has every word of the elements as they have it."""
    table = BROWSER.partition("<!-- table: labels -->\n")[2].partition("\n\n")[0]

    assert dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.MULTILINE)) == words_of("elements.js")


def test_words_of_the_list_are_documented() -> None:
    """docs/inbox.md has every word of the bell and the list as they have it, and none is one of another element."""
    words, others = (words_of(name) for name in ("inbox.js", "elements.js"))
    table = (ROOT / "docs/inbox.md").read_text().partition("<!-- table: labels -->\n")[2].partition("\n\n")[0]

    assert dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.MULTILINE)) == words
    assert not words.keys() & others.keys()


def words_of(module: str) -> dict[str, str]:
    source = re.split(r"^const (?:labels|WORDS) = \{$", (STATIC / module).read_text(), flags=re.MULTILINE)[1]
    return dict(re.findall(r'^  (\w+): "(.+)",$', source.partition("};")[0], re.MULTILINE))


def stated(mark: str) -> set[str]:
    """Return the names in the first cells of a table."""
    table = BROWSER.partition(f"<!-- table: {mark} -->\n")[2].partition("\n\n")[0]
    cells = re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)", cell)}


# The view


@pytest.mark.django_db
def test_token_view_answers_its_user(client: Client) -> None:
    """Logged-in users get a token of their own, which no cache keeps."""
    user = User.objects.create(username="ada")
    client.force_login(user)

    answer = client.get("/token/")

    assert check_token(answer.json()["token"]) == user
    assert "no-store" in answer.headers["Cache-Control"]


@pytest.mark.django_db
def test_token_view_refuses_others(client: Client) -> None:
    """Anonymous users get 403, not a login page; other methods are refused."""
    assert client.get("/token/").status_code == 403
    assert client.post("/token/").status_code == 405
