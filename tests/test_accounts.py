"""Accounts, sessions, teams and roles over the dashboard's API, against the real server."""

import concurrent.futures
import time
import uuid

import jwt
import pytest

from harness.admin import admin
from harness.ctl import ctl, ctl_json
from harness.people import PASSWORD, Person, letter, link_token, member, operator

pytestmark = pytest.mark.timeout(120)

OPEN = "[accounts]\nsignup = true\n"


@pytest.fixture(scope="module")
def hall(tmp_path_factory):
    """A server with a team of all roles; signed-in people by role."""
    from harness.server import Server

    server = Server(tmp_path_factory.mktemp("hall"), shards=1).start()
    ann = operator(server)
    team = ann.call("GET", "/teams")["teams"][0]["id"]
    people = {"operator": ann}
    for role in ("owner", "admin", "developer", "viewer", "billing"):
        people[role] = member(ann, team, f"{role}@example.com", role, role.title())
    yield server, team, people
    assert server.alive() and "panicked" not in server.log()
    server.kill()


@pytest.fixture
def sam(hall):
    """Somebody with an account and no team, whose sessions may end."""
    server = hall[0]
    email = f"sam-{uuid.uuid4().hex[:8]}@example.com"
    admin(server, "POST", "/accounts", {"email": email, "password": PASSWORD})
    person = Person(server)
    person.email = email
    person.sign_in(email)
    return person


def totp(secret, at=None):
    """A code as an authenticator app computes it (RFC 6238)."""
    import base64
    import hashlib
    import hmac
    import struct

    key = base64.b32decode(secret + "=" * (-len(secret) % 8))
    digest = hmac.new(key, struct.pack(">Q", int((at or time.time()) // 30)), hashlib.sha1).digest()
    start = digest[-1] & 15
    return "%06d" % ((struct.unpack(">I", digest[start : start + 4])[0] & 0x7FFFFFFF) % 10**6)


# -- the way in -------------------------------------------------------------------------------------------------------


def test_the_first_start_prints_a_link_that_makes_the_first_account_once(new_server):
    server = new_server()
    link = next(line.strip() for line in server.out().splitlines() if "/dashboard/setup?token=" in line)
    assert "setup?token" not in server.log(), "the link is a secret"
    ann = Person(server)
    wanted = {"token": link_token(link), "email": "Ann@example.com", "name": "Ann", "password": PASSWORD}
    assert "too short" in ann.call("POST", "/setup", wanted | {"password": "short"}, 400)["error"]
    ann.took(ann.call("POST", "/setup", wanted))
    me = ann.call("GET", "/me")
    assert me["operator"] and me["verified"] and me["email"] == "ann@example.com"
    assert [app["id"] for app in ann.call("GET", "/apps")["apps"]] == ["dev"]
    Person(server).call("POST", "/setup", wanted | {"email": "b@example.com"}, 404)
    server.stop()
    server.start()
    assert server.out().count("/dashboard/setup?token=") == 1
    ann = Person(server)
    ann.sign_in("ann@example.com")


def test_cookies_are_out_of_reach_of_scripts_and_other_sites(hall):
    server, _, _ = hall
    answer = Person(server).request("POST", "/dashboard/api/login", {"email": "ann@example.com", "password": PASSWORD})
    cookies = answer.headers.get_all("set-cookie")
    assert {line.split("=")[0] for line in cookies} == {"shardwire_access", "shardwire_refresh"}
    for line in cookies:
        assert "; HttpOnly" in line and "; SameSite=Strict" in line and "; Path=/dashboard" in line
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert answer.headers["cache-control"] == "no-store" and answer.headers["x-content-type-options"] == "nosniff"


def test_nobody_learns_whether_an_address_has_an_account(new_server):
    server = new_server(config=OPEN)
    operator(server)
    eve = Person(server)
    wrong = [eve.call("POST", "/login", {"email": email, "password": "not the password"}, 401)
             for email in ("ann@example.com", "nobody@example.com", "no address")]
    assert wrong[0] == wrong[1] == wrong[2]

    def seconds(email):
        began = time.monotonic()
        eve.call("POST", "/login", {"email": email, "password": "not the password"}, 401)
        return time.monotonic() - began

    known = min(seconds("ann@example.com") for _ in range(3))
    unknown = min(seconds(f"nobody{n}@example.com") for n in range(3))
    assert unknown > known / 3, "no password is hashed for an unknown address"
    known, unknown = (eve.call("POST", "/forgot", {"email": e}) for e in ("ann@example.com", "nobody@example.com"))
    assert known == unknown
    account = {"name": "Eve", "password": PASSWORD}
    assert eve.call("POST", "/signup", {"email": "ann@example.com"} | account) == eve.call(
        "POST", "/signup", {"email": "eve@example.com"} | account)


def test_a_sign_up_is_good_once_its_address_is_shown(new_server):
    server = new_server(config=OPEN)
    operator(server)
    eve = Person(server)
    eve.call("POST", "/signup", {"email": "eve@example.com", "name": "Eve", "password": PASSWORD})
    link = letter(server, "eve@example.com", "Is this your address")
    assert eve.sign_in("eve@example.com", status=403)["code"] == 40301
    eve.call("POST", "/verify", {"token": link_token(link)})
    eve.call("POST", "/verify", {"token": link_token(link)}, 404)
    eve.sign_in("eve@example.com")
    assert eve.call("GET", "/apps")["apps"] == [] and not eve.call("GET", "/me")["operator"]
    eve.call("GET", "/nodes", status=403)


def test_sign_up_is_closed_by_default(hall):
    server, _, _ = hall
    refused = Person(server).call("POST", "/signup", {"email": "x@example.com", "name": "X", "password": PASSWORD}, 403)
    assert "invitation" in refused["error"]


def test_guessing_is_slowed_down_for_the_guesser_alone(new_server):
    server = new_server()
    ann = operator(server)
    eve = Person(server)
    statuses = [eve.request("POST", "/dashboard/api/login", {"email": "ann@example.com", "password": f"wrong {n}"}).status
                for n in range(8)]
    assert statuses[:5] == [401] * 5 and 429 in statuses[5:]
    refused = eve.request("POST", "/dashboard/api/login", {"email": "ann@example.com", "password": PASSWORD})
    assert refused.status == 429 and refused.headers["retry-after"]
    assert ann.call("GET", "/me")["email"] == "ann@example.com"
    failures = [e for e in ctl_json(server, "audit")["entries"] if e["call"] == "sign-in failed"]
    assert len(failures) == statuses.count(401) and failures[0]["actor"] == "ann@example.com"


# -- sessions ---------------------------------------------------------------------------------------------------------


def test_a_refresh_token_is_good_once_and_its_copy_ends_the_session(new_server):
    server = new_server()
    ann = operator(server)
    stolen = dict(ann.cookies)
    del ann.cookies["shardwire_access"]
    ann.call("GET", "/me")
    assert ann.cookies["shardwire_refresh"] != stolen["shardwire_refresh"]
    thief = Person(server)
    thief.cookies = {"shardwire_refresh": stolen["shardwire_refresh"].split(".")[0] + ".guessed"}
    thief.call("GET", "/me", status=401)
    ann.call("GET", "/me", status=401)
    assert any("its token came twice" in e["call"] for e in ctl_json(server, "audit")["entries"])


def test_requests_of_one_page_may_bring_the_same_refresh_token_at_once(hall, sam):
    server, _, _ = hall
    refresh = sam.cookies["shardwire_refresh"]

    def one(_):
        tab = Person(server)
        tab.cookies = {"shardwire_refresh": refresh}
        return tab.request("GET", "/dashboard/api/me").status

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert list(pool.map(one, range(6))) == [200] * 6


def test_sessions_are_listed_and_ended_at_once(hall, sam):
    server, _, _ = hall
    one, two, three = sam, Person(server), Person(server)
    for person in (two, three):
        person.sign_in(sam.email)
    listed = one.call("GET", "/me/sessions")["sessions"]
    assert [s["current"] for s in listed].count(True) == 1
    assert all(s["address"] == "127.0.0.1" and s["agent"] == "tests" for s in listed)
    sid = jwt.decode(two.access, options={"verify_signature": False})["sid"]
    one.call("DELETE", f"/me/sessions/{sid}")
    two.call("GET", "/me", status=401)
    # Also an access token that is good by its time.
    bare = Person(server)
    assert bare.request("GET", "/dashboard/api/me", headers=[("Authorization", f"Bearer {two.access}")]).status == 401
    one.call("DELETE", "/me/sessions")
    three.call("GET", "/me", status=401)
    one.call("POST", "/logout")
    assert "shardwire_refresh" not in one.cookies
    one.call("GET", "/me", status=401)


def test_access_tokens_are_short_jwts_and_no_other_is_taken(hall, sam):
    server, ann = hall[0], sam
    claims = jwt.decode(ann.access, options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == 600 and claims["aud"] == "shardwire-dashboard"

    def with_token(token):
        return Person(server).request("GET", "/dashboard/api/me", headers=[("Authorization", f"Bearer {token}")])

    assert with_token(ann.access).status == 200
    forged = jwt.encode(claims, "x" * 32, algorithm="HS256")
    none = jwt.encode(claims, None, algorithm="none")
    for token in (forged, none, ann.cookies["shardwire_refresh"], "x"):
        assert with_token(token).status == 401, token


def test_a_reset_sets_the_password_once_and_ends_all_sessions(new_server):
    server = new_server()
    ann = operator(server)
    ann.call("POST", "/forgot", {"email": "ANN@example.com"})
    link = letter(server, "ann@example.com", "Set another password")
    assert link.startswith("http://127.0.0.1:%d/dashboard/reset?" % server.admin[1])
    token = link_token(link)
    other = "other lamp eight trees"
    assert "easily" in ann.call("POST", "/reset", {"token": token, "password": "ann@example.com"}, 400)["error"]
    ann.call("POST", "/reset", {"token": token, "password": other})
    ann.call("POST", "/reset", {"token": token, "password": other}, 404)
    ann.call("GET", "/me", status=401)
    again = Person(server)
    again.sign_in("ann@example.com", status=401)
    again.sign_in("ann@example.com", other)
    old = Person(server)
    old.sign_in("ann@example.com", other)
    again.call("POST", "/me/password", {"current": "wrong", "password": PASSWORD}, 401)
    again.call("POST", "/me/password", {"current": other, "password": PASSWORD})
    old.call("GET", "/me", status=401)
    assert again.call("GET", "/me")["email"] == "ann@example.com"


def test_an_address_is_changed_by_a_link_and_the_session_stays(new_server):
    server = new_server()
    ann = operator(server)
    admin(server, "POST", "/accounts", {"email": "bob@example.com", "password": PASSWORD})
    change = {"email": "Ann@new.example", "password": PASSWORD}
    ann.call("POST", "/me/email", change | {"password": "wrong"}, 401)
    assert "`email`" in ann.call("POST", "/me/email", change | {"email": "no address"}, 400)["error"]
    assert "already" in ann.call("POST", "/me/email", change | {"email": "ann@example.com"}, 400)["error"]
    # The address of another account: the same answer, and a letter that has no link.
    assert ann.call("POST", "/me/email", change | {"email": "bob@example.com"}) == ann.call("POST", "/me/email", change)
    assert ann.call("GET", "/me")["pendingEmail"] == "ann@new.example"
    link = letter(server, "ann@new.example", "Is this your new address")
    assert link.startswith("http://127.0.0.1:%d/dashboard/email/confirm?" % server.admin[1])
    letter(server, "ann@example.com", "Another address for your account")
    anyone = Person(server)
    assert anyone.request("GET", "/dashboard/email/confirm?token=" + link_token(link)).status == 200
    assert ann.call("GET", "/me")["email"] == "ann@example.com", "looking at the page changes nothing"
    anyone.call("POST", "/email/undo", {"token": link_token(link)}, 404)
    anyone.call("POST", "/email/confirm", {"token": link_token(link)})
    anyone.call("POST", "/email/confirm", {"token": link_token(link)}, 404)
    me = ann.call("GET", "/me")
    assert me["email"] == "ann@new.example" and me["verified"] and me["pendingEmail"] is None
    Person(server).sign_in("ann@example.com", status=401)
    Person(server).sign_in("ann@new.example")
    entries = {e["call"]: e for e in reversed(ctl_json(server, "audit")["entries"])}
    assert entries["address change asked for"]["detail"] == "email: ann@new.example"
    assert entries["address changed"]["status"] == 200 and entries["POST /me/email"]["actor"] == "ann@example.com"


def test_the_way_back_gives_an_account_back_to_its_owner(new_server):
    server = new_server()
    ann = operator(server)
    eve = Person(server)
    eve.sign_in("ann@example.com")
    eve.call("POST", "/me/email", {"email": "eve@example.com", "password": PASSWORD})
    eve.call("POST", "/email/confirm", {"token": link_token(letter(server, "eve@example.com", "Is this your new address"))})
    eve.sign_in("eve@example.com")
    back = letter(server, "ann@example.com", "The address of your account was changed")
    page = Person(server).request("GET", "/dashboard/email/undo?token=" + link_token(back))
    assert page.status == 200 and "ann@example.com" in page.body
    reset = ann.call("POST", "/email/undo", {"token": link_token(back)})["link"]
    for person in (ann, eve):
        person.call("GET", "/me", status=401)
    for email in ("ann@example.com", "eve@example.com"):
        Person(server).sign_in(email, status=401)
    ann.call("POST", "/email/undo", {"token": link_token(back)}, 404)
    ann.call("POST", "/reset", {"token": link_token(reset), "password": "other lamp eight trees"})
    ann.sign_in("ann@example.com", "other lamp eight trees")
    assert ann.call("GET", "/me")["email"] == "ann@example.com"


def test_a_change_of_address_ends_with_the_password_and_is_asked_for_a_few_times(new_server):
    server = new_server()
    ann = operator(server)
    ann.call("POST", "/me/email", {"email": "a@example.com", "password": PASSWORD})
    link = letter(server, "a@example.com", "Is this your new address")
    other = "other lamp eight trees"
    ann.call("POST", "/me/password", {"current": PASSWORD, "password": other})
    Person(server).call("POST", "/email/confirm", {"token": link_token(link)}, 404)
    statuses = [ann.request("POST", "/dashboard/api/me/email", {"email": f"{n}@example.com", "password": other},
                            [("X-CSRF-Token", ann.form_token)]).status for n in range(6)]
    assert statuses[0] == 200 and statuses[-1] == 429
    ann.call("DELETE", "/me/email")
    assert ann.call("GET", "/me")["pendingEmail"] is None


def test_a_second_factor_is_asked_for_and_each_code_is_good_once(new_server):
    server = new_server()
    ann = operator(server)
    ann.call("POST", "/me/totp", {}, 400)
    ann.call("POST", "/me/totp", {"password": "wrong"}, 401)
    enrolment = ann.call("POST", "/me/totp", {"password": PASSWORD})
    assert enrolment["url"].startswith("otpauth://totp/Shardwire:ann%40example.com?secret=" + enrolment["secret"])
    wrong = "%06d" % ((int(totp(enrolment["secret"])) + 1) % 10**6)
    ann.call("POST", "/me/totp/confirm", {"code": wrong}, 400)
    # The step before last counts as well, and leaves the present one for the sign-in.
    codes = ann.call("POST", "/me/totp/confirm", {"code": totp(enrolment["secret"], time.time() - 30)})["recoveryCodes"]
    assert len(codes) == 10 and ann.call("GET", "/me")["recoveryCodesLeft"] == 10
    again = Person(server)
    assert again.sign_in("ann@example.com")["codeWanted"]
    again.call("GET", "/me", status=401)
    again.call("POST", "/login/code", {"code": "000000"}, 401)
    code = totp(enrolment["secret"])
    again.took(again.call("POST", "/login/code", {"code": code}))
    assert again.call("GET", "/me")["secondFactor"]
    third = Person(server)
    third.sign_in("ann@example.com")
    third.call("POST", "/login/code", {"code": code}, 401)
    third.took(third.call("POST", "/login/code", {"code": codes[0]}))
    assert third.call("GET", "/me")["recoveryCodesLeft"] == 9
    # The token of the first step is not one of a session.
    fourth = Person(server)
    challenge = fourth.sign_in("ann@example.com")["challenge"]
    assert fourth.request("GET", "/dashboard/api/me", headers=[("Authorization", f"Bearer {challenge}")]).status == 401
    # An address is changed with a code too.
    change = {"email": "other@example.com", "password": PASSWORD}
    assert "`code`" in third.call("POST", "/me/email", change, 400)["error"]
    third.call("POST", "/me/email", change | {"code": code}, 401)
    third.call("POST", "/me/email", change | {"code": codes[1]})
    third.call("POST", "/me/recovery-codes", {"password": "wrong"}, 401)
    assert len(third.call("POST", "/me/recovery-codes", {"password": PASSWORD})["recoveryCodes"]) == 10
    third.call("POST", "/me/totp/remove", {"password": "wrong"}, 401)
    third.call("POST", "/me/totp/remove", {"password": PASSWORD})
    assert "accessToken" in Person(server).sign_in("ann@example.com")


# -- other sites ------------------------------------------------------------------------------------------------------


def test_what_another_site_has_a_browser_send_changes_nothing(hall):
    server, _, people = hall
    ann = people["operator"]
    path = "/dashboard/api/apps/dev/keys"
    before = len(ann.call("GET", "/apps/dev/keys")["keys"])
    key = {"kind": "client"}
    good = ("X-CSRF-Token", ann.form_token)
    refused = [
        ann.request("POST", path, key),
        ann.request("POST", path, key, [("X-CSRF-Token", "wrong")]),
        ann.request("POST", path, key, [("X-CSRF-Token", people["viewer"].form_token)]),
        ann.request("POST", path, key, [good, ("Origin", "https://evil.example")]),
        ann.request("POST", path, key, [good, ("Origin", "https://evil.example"), ("Sec-Fetch-Site", "none")]),
        ann.request("POST", path, key, [good, ("Sec-Fetch-Site", "cross-site")]),
        ann.request("POST", path, key, [good, ("Origin", "null")]),
        Person(server).request("POST", "/dashboard/api/login", {"email": "ann@example.com", "password": PASSWORD}, kind="text/plain"),
    ]
    assert [answer.status for answer in refused] == [403] * len(refused)
    assert len(ann.call("GET", "/apps/dev/keys")["keys"]) == before
    own = [good, ("Origin", "http://%s:%d" % server.admin), ("Sec-Fetch-Site", "same-origin")]
    assert ann.request("POST", path, key, own).status == 201


# -- teams and roles --------------------------------------------------------------------------------------------------

# Calls that change nothing where they are allowed, with the roles that may make them.
ROLES = [
    ("GET", "/apps/dev", None, "owner admin developer viewer billing"),
    ("GET", "/apps/dev/usage", None, "owner admin developer viewer billing"),
    ("GET", "/apps/dev/plan", None, "owner admin billing"),
    ("GET", "/apps/dev/keys", None, "owner admin developer viewer"),
    ("GET", "/apps/dev/channels", None, "owner admin developer viewer"),
    ("GET", "/apps/dev/channels/c/messages", None, "owner admin developer viewer"),
    ("POST", "/apps/dev/channels/c/messages", {"data": 1, "id": "same"}, "owner admin developer"),
    ("PATCH", "/apps/dev", {"name": "dev"}, "owner admin developer"),
    ("POST", "/apps/dev/keys/none/rotate", {}, "owner admin developer"),
    ("DELETE", "/apps/none", None, ""),
    ("GET", "/teams/{team}/members", None, "owner admin developer viewer billing"),
    ("GET", "/teams/{team}/invitations", None, "owner admin"),
    ("GET", "/teams/{team}/audit", None, "owner admin"),
    ("PATCH", "/teams/{team}", {"name": "My team"}, "owner admin"),
    ("DELETE", "/teams/{team}", None, "owner"),
    ("GET", "/nodes", None, ""),
    ("GET", "/config", None, ""),
    ("POST", "/drain", {}, ""),
    ("GET", "/accounts", None, ""),
    ("GET", "/audit", None, ""),
]


@pytest.mark.parametrize("role", ["owner", "admin", "developer", "viewer", "billing"])
def test_a_role_may_what_the_table_says(hall, role):
    server, team, people = hall
    for method, path, body, allowed in ROLES:
        path = path.replace("{team}", team)
        answer = people[role].request(method, "/dashboard/api" + path, body, [("X-CSRF-Token", people[role].form_token)])
        if role in allowed.split():
            # What does not exist, or may not be deleted, is found out behind the check.
            assert answer.status not in (401, 403), f"{method} {path}: {answer.status} {answer.body}"
        else:
            assert answer.status in (403, 404), f"{method} {path}: {answer.status}"
    assert server.alive()


def test_strangers_learn_nothing_of_a_team_or_its_apps(hall):
    server, team, people = hall
    admin(server, "POST", "/accounts", {"email": "eve@example.com", "password": PASSWORD})
    eve = Person(server)
    eve.sign_in("eve@example.com")
    for path in ("/apps/dev", "/apps/dev/keys", f"/teams/{team}", f"/teams/{team}/members"):
        other = path.replace("dev", "none").replace(team, "t_none")
        assert eve.call("GET", path, status=404) == eve.call("GET", other, status=404)
    assert eve.call("GET", "/apps")["apps"] == [] and eve.call("GET", "/teams")["teams"] == []
    for path in ("/apps/dev", "/me", "/nodes", f"/teams/{team}"):
        Person(server).call("GET", path, status=401)


def test_apps_belong_to_teams_and_move_with_their_owners(hall):
    server, team, people = hall
    owner, developer = people["owner"], people["developer"]
    assert developer.call("POST", f"/teams/{team}/apps", {"id": "shop", "name": "Shop"})["id"] == "shop"
    other = owner.call("POST", "/teams", {"name": "Other"})["id"]
    developer.call("POST", "/apps/shop/transfer", {"team": other}, 403)
    owner.call("POST", "/apps/shop/transfer", {"team": other})
    developer.call("GET", "/apps/shop", status=404)
    assert {a["id"]: a["team"] for a in owner.call("GET", "/apps")["apps"]} == {"dev": team, "shop": other}
    owner.call("DELETE", f"/teams/{other}", status=400)
    owner.call("DELETE", "/apps/shop")
    owner.call("DELETE", f"/teams/{other}")
    owner.call("GET", f"/teams/{other}", status=404)


def test_members_name_no_file_of_the_host_and_give_no_plan(hall):
    server, _, people = hall
    developer, ann = people["developer"], people["operator"]
    for settings in ({"jwksFile": "/etc/passwd"}, {"plan": "none"}):
        developer.call("PATCH", "/apps/dev", {"settings": settings}, 403)
    ann.call("PUT", "/plans/p1", {"connectionsMax": 5})
    ann.call("PATCH", "/apps/dev", {"settings": {"plan": "p1"}})
    developer.call("PATCH", "/apps/dev", {"settings": {"plan": None}}, 403)
    developer.call("PATCH", "/apps/dev", {"settings": {"plan": "p1", "hello": True}})
    ann.call("PATCH", "/apps/dev", {"settings": {"plan": None}})


def test_roles_are_given_by_those_above_and_the_last_owner_stays(hall):
    server, _, people = hall
    ann = people["operator"]
    admin(server, "POST", "/accounts", {"email": "tom@example.com", "password": PASSWORD})
    tom = Person(server)
    tom.sign_in("tom@example.com")
    team = tom.call("POST", "/teams", {"name": "Toms"})["id"]
    kim = member(tom, team, "kim@example.com", "admin", "Kim")
    members = {m["email"]: m["id"] for m in tom.call("GET", f"/teams/{team}/members")["members"]}
    kim.call("POST", f"/teams/{team}/invitations", {"email": "x@example.com", "role": "owner"}, 403)
    kim.call("PATCH", f"/teams/{team}/members/{members['kim@example.com']}", {"role": "owner"}, 403)
    kim.call("DELETE", f"/teams/{team}/members/{members['tom@example.com']}", status=403)
    tom.call("POST", f"/teams/{team}/leave", status=400)
    tom.call("POST", f"/teams/{team}/transfer", {"account": members["kim@example.com"]})
    assert {m["email"]: m["role"] for m in kim.call("GET", f"/teams/{team}/members")["members"]} == {
        "kim@example.com": "owner", "tom@example.com": "admin"}
    tom.call("POST", f"/teams/{team}/leave")
    tom.call("GET", f"/teams/{team}", status=404)
    assert any(t["name"] == "Toms" for t in ann.call("GET", "/teams")["teams"])


def test_an_invitation_to_somebody_with_an_account_is_taken_signed_in(hall):
    server, team, people = hall
    admin(server, "POST", "/accounts", {"email": "lou@example.com", "password": PASSWORD})
    before = len(server.log())
    people["admin"].call("POST", f"/teams/{team}/invitations", {"email": "lou@example.com", "role": "viewer"})
    token = link_token(letter(server, "lou@example.com", "Invitation", before))
    refused = Person(server).call("POST", "/join", {"token": token, "name": "Lou", "password": PASSWORD}, 400)
    assert "sign in" in refused["error"]
    people["viewer"].call("POST", "/me/join", {"token": token}, 400)
    lou = Person(server)
    lou.sign_in("lou@example.com")
    lou.call("POST", "/me/join", {"token": token})
    assert lou.call("GET", f"/teams/{team}")["role"] == "viewer"
    lou.call("POST", "/me/join", {"token": token}, 404)


# -- the audit log ----------------------------------------------------------------------------------------------------


def test_every_change_is_in_the_audit_log_also_a_refused_one(hall):
    server, team, people = hall
    key = people["developer"].call("POST", "/apps/dev/keys", {"kind": "client"})["id"]
    people["viewer"].call("DELETE", f"/apps/dev/keys/{key}", status=403)
    admin(server, "DELETE", f"/apps/dev/keys/{key}")
    entries = people["admin"].call("GET", f"/teams/{team}/audit")["entries"]
    seen = [(e["actor"], e["call"], e["app"], e["target"], e["status"]) for e in entries[:3]]
    assert seen == [
        ("admin token", f"DELETE /admin/apps/dev/keys/{key}", "dev", None, 200),
        ("viewer@example.com", "DELETE /apps/{app}/keys/{id}", "dev", key, 403),
        ("developer@example.com", "POST /apps/{app}/keys", "dev", key, 201),
    ]
    assert entries[2]["detail"] == "kind: client"
    page = people["admin"].call("GET", f"/teams/{team}/audit?limit=2")
    rest = people["admin"].call("GET", f"/teams/{team}/audit?limit=2&cursor={page['cursor']}")
    assert [e["id"] for e in page["entries"] + rest["entries"]] == [e["id"] for e in entries[:4]]
    own = people["developer"].call("GET", "/me/audit")["entries"]
    assert {e["actor"] for e in own} == {"developer@example.com"}


# -- whoever runs the server ------------------------------------------------------------------------------------------


def test_the_operator_looks_after_accounts_on_the_command_line(new_server):
    server = new_server()
    ann = operator(server)
    link = ctl(server, "accounts", "create", "bob@example.com").stdout.strip()
    bob = Person(server)
    bob.call("POST", "/reset", {"token": link_token(link), "password": PASSWORD})
    bob.sign_in("bob@example.com")
    assert [a["email"] for a in ctl_json(server, "accounts", "list")["accounts"]] == ["ann@example.com", "bob@example.com"] \
        or len(ctl_json(server, "accounts", "list")["accounts"]) == 2
    ctl(server, "accounts", "update", "bob@example.com", "--disable")
    bob.call("GET", "/me", status=401)
    bob.sign_in("bob@example.com", status=401)
    ctl(server, "accounts", "update", "bob@example.com", "--enable", "--operator", "true")
    bob.sign_in("bob@example.com")
    assert bob.call("GET", "/nodes")["nodes"]
    reset = ctl(server, "accounts", "reset", "bob@example.com").stdout.strip()
    assert "/dashboard/reset?token=" in reset
    ctl(server, "accounts", "delete", "bob@example.com")
    ctl(server, "accounts", "show", "bob@example.com", code=4)
    assert ann.call("GET", "/accounts")["accounts"][0]["email"] == "ann@example.com"


def test_secrets_are_neither_in_the_log_nor_in_the_data_folder(new_server):
    server = new_server()
    ann = operator(server)
    secret = ann.call("POST", "/me/totp", {"password": PASSWORD})["secret"]
    refresh = ann.cookies["shardwire_refresh"].split(".")[1]
    server.stop()
    kept = b"".join(path.read_bytes() for path in server.data_dir.iterdir() if path.is_file())
    for text in (PASSWORD, secret, refresh, ann.access, ann.form_token):
        assert text.encode() not in kept and text not in server.log()
    modes = {path.name: path.stat().st_mode & 0o777 for path in server.data_dir.glob("accounts*")}
    assert modes and set(modes.values()) == {0o600}, modes


def test_without_a_dashboard_there_is_none(new_server):
    server = new_server(config="[dashboard]\nenabled = false\n")
    assert Person(server).request("GET", "/dashboard").status == 404
    assert Person(server).request("POST", "/dashboard/api/login", {}).status == 404
    assert "/dashboard/setup" not in server.out() and not (server.data_dir / "accounts.db").exists()


def test_a_listener_of_its_own_serves_the_dashboard_alone(new_server, free_port):
    server = new_server(config=f'[dashboard]\nlisten = "127.0.0.1:{free_port}"\n')
    operator(server)
    own = Person(server, ("127.0.0.1", free_port))
    own.sign_in("ann@example.com")
    assert own.call("GET", "/me")["email"] == "ann@example.com"
    assert own.request("GET", "/admin/nodes").status == 404 and own.request("GET", "/metrics").status == 404


@pytest.fixture
def free_port():
    """A port that was free a moment ago."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
