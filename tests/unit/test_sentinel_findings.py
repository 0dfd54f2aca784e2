"""What the doctor says of Sentinels, given what they have said."""

import redis

from notifications.broker.sentinels import Answer, Primary
from notifications.doctor.findings import Level
from notifications.doctor.sentinels import judge
from tests.cases import cases

GOOD = {"flags": "master", "num-other-sentinels": "2", "quorum": "2", "num-slaves": "1"}
HOSTS = [("s1", 26379), ("s2", 26379), ("s3", 26379)]


def answer(host="10.0.0.1", **facts):
    return Answer(Primary(host, 6379, 0), [], GOOD | {name.replace("_", "-"): value for name, value in facts.items()})


def said(*answers):
    return dict(zip(HOSTS, answers, strict=True))


SILENT = redis.TimeoutError("no answer")


@cases(
    ("answers", "level", "text"),
    [
        (
            said(answer(), answer(), answer()),
            Level.OK,
            "3 Sentinels agree that main is 10.0.0.1:6379; quorum 2, 1 repl",
        ),
        (said(answer(), SILENT, answer()), Level.WARNING, "Sentinel s2:26379 does not help: no answer"),
        (said(SILENT, SILENT, SILENT), Level.WARNING, "Sentinel s3:26379 does not help: no answer"),
        (said(answer(), answer("10.0.0.2"), answer()), Level.WARNING, "do not agree: s1:26379 names 10.0.0.1:6379; s2"),
        (
            said(answer("127.0.0.1"), answer(), answer()),
            Level.ERROR,
            "s1:26379 names 127.0.0.1:6379, which leads every",
        ),
        (said(answer("::1"), answer(), answer()), Level.ERROR, "names [::1]:6379, which"),
        (said(answer(flags="s_down,master"), answer(), answer()), Level.WARNING, "say of main: s_down,master"),
        (said(*[answer(num_other_sentinels="1")] * 3), Level.WARNING, "there are 2 Sentinel(s)"),
        (said(*[answer(quorum="4")] * 3), Level.WARNING, "the quorum is 4 of 3 Sentinels"),
        (said(*[answer(num_slaves="0")] * 3), Level.WARNING, "main has no replica"),
    ],
)
def test_each_fault_is_named(answers, level, text):
    """With the Sentinel that shows it, once, and with what to do."""
    found = [finding for finding in judge("main", answers) if text in finding.text]

    assert [finding.level for finding in found] == [level]
    assert bool(found[0].hint) is (level is not Level.OK)


def test_a_sentinel_on_the_same_host_may_name_that_host():
    """As on a laptop: everybody is there."""
    answers = {("127.0.0.1", 1): answer("127.0.0.1"), ("localhost", 2): answer("127.0.0.1")}

    assert [finding.level for finding in judge("main", answers)] == [Level.OK]


def test_an_account_that_may_read_little_is_enough():
    """It is told where the primary is, and that is what the site needs."""
    answers = {host: Answer(Primary("10.0.0.1", 6379, 0), [], {}) for host in HOSTS}

    [finding] = judge("main", answers)
    assert (finding.level, finding.text) == (Level.OK, "3 Sentinels agree that main is 10.0.0.1:6379")
