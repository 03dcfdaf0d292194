"""Letters over a real mail server: plain, with TLS of both kinds, signed in, while it is away and when it is odd."""

import re
import socket
import time

import pytest

from harness.admin import admin
from harness.people import PASSWORD, Person, link_token, member, operator
from harness.smtp import Postman
from harness.tls import Authority
from harness.wait import wait_until

pytestmark = pytest.mark.timeout(120)


def mail_config(port, tls="none", more="", host="127.0.0.1"):
    return f'[mail]\nsmtp_host = "{host}"\nsmtp_port = {port}\nsmtp_tls = "{tls}"\nfrom = "Käse GmbH <hello@example.com>"\n{more}'


def forgot(server, email="ann@example.com"):
    """Asks for a letter; how many seconds the answer took."""
    began = time.monotonic()
    Person(server).call("POST", "/forgot", {"email": email})
    return time.monotonic() - began


def test_a_letter_arrives_as_it_was_meant(new_server):
    with Postman() as postman:
        server = new_server(config=mail_config(postman.port))
        ann = operator(server, name="Anneliese Müßig-Ødegård")
        forgot(server)
        letter = postman.wait_for("ann@example.com", "Set another password")
        assert letter.sender == "hello@example.com" and not letter.was_tls
        assert letter["from"].addresses[0].display_name == "Käse GmbH"
        assert letter["auto-submitted"] == "auto-generated" and letter["message-id"] and letter["date"]
        link = re.search(r"http\S+token=[\w-]+", letter.get_content()).group(0)
        Person(server).call("POST", "/reset", {"token": link_token(link), "password": "other lamp eight trees"})
        assert "token=" not in server.log(), "the link is for its reader"
        # Names of every kind, and lines longer than SMTP has them.
        ann.sign_in("ann@example.com", "other lamp eight trees")
        team = ann.call("POST", "/teams", {"name": "京都 Кот 🐈 .\u00adx " + "ß" * 60})["id"]
        ann.call("POST", f"/teams/{team}/invitations", {"email": "bob@example.com", "role": "viewer"})
        letter = postman.wait_for("bob@example.com", "Invitation to 京都 Кот 🐈")
        assert "Anneliese Müßig-Ødegård invites you to the team 京都 Кот 🐈" in letter.get_content()
        assert max(map(len, letter.raw.splitlines())) <= 998 and letter.raw.isascii()


def test_long_links_stay_whole(new_server):
    long = "http://dashboard.example.com/" + "x" * 1200
    with Postman() as postman:
        server = new_server(config=mail_config(postman.port) + f'[dashboard]\npublic_url = "{long}"\n')
        operator(server)
        forgot(server)
        letter = postman.wait_for("ann@example.com", "Set another password")
        assert re.search(long + r"/\S*reset\?token=[\w-]{43}\r?\n", letter.get_content())
        assert max(map(len, letter.raw.splitlines())) <= 998


@pytest.mark.parametrize("tls", ["starttls", "tls"])
def test_tls_of_both_kinds_with_an_authority_of_ones_own(new_server, tmp_path, tls):
    ca = Authority(tmp_path / "ca")
    with Postman(tls=ca.issue("mail", "localhost", "127.0.0.1"), wrapped=tls == "tls") as postman:
        server = new_server(config=mail_config(postman.port, tls, f'ca_file = "{ca.file}"\n'))
        operator(server)
        forgot(server)
        letter = postman.wait_for("ann@example.com", "Set another password")
        assert letter.was_tls or tls == "tls"


@pytest.mark.parametrize("tls", ["starttls", "tls"])
def test_a_mail_server_that_cannot_be_told_gets_no_letter(new_server, tmp_path, tls):
    ca, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    with Postman(tls=ca.issue("mail", "localhost", "127.0.0.1"), wrapped=tls == "tls") as postman:
        server = new_server(config=mail_config(postman.port, tls, f'ca_file = "{other.file}"\n'))
        operator(server)
        forgot(server)
        wait_until(lambda: "a letter cannot be sent" in server.log(), 20, "the failure to be told")
        assert not postman.letters


def test_a_mail_server_without_tls_gets_no_letter_where_it_is_asked_for(new_server):
    with Postman() as postman:
        server = new_server(config=mail_config(postman.port, "starttls"))
        operator(server)
        forgot(server)
        wait_until(lambda: "a letter cannot be sent" in server.log(), 20, "the failure to be told")
        assert not postman.letters


@pytest.mark.parametrize("password, is_right", [("gröner teller 9", True), ("wrong", False)])
def test_it_signs_in_and_a_wrong_password_is_told_once(new_server, tmp_path, password, is_right):
    ca = Authority(tmp_path / "ca")
    file = tmp_path / "password"
    file.write_text(password + "\n")
    with Postman(tls=ca.issue("mail", "localhost", "127.0.0.1"), login=("user@example.com", "gröner teller 9")) as postman:
        more = f'ca_file = "{ca.file}"\nusername = "user@example.com"\npassword_file = "{file}"\n'
        server = new_server(config=mail_config(postman.port, "starttls", more))
        operator(server)
        forgot(server)
        if is_right:
            postman.wait_for("ann@example.com", "Set another password")
        else:
            wait_until(lambda: "is dropped" in server.log(), 20, "the failure to be told")
            assert not postman.letters and len(postman.sign_ins) == 1, "a wrong password is not tried over and over"
        assert postman.sign_ins[0] == ("user@example.com", password)
        assert password not in server.log()


def test_a_mail_server_that_is_away_gets_the_letter_when_it_is_back(new_server):
    postman = Postman().start()
    server = new_server(config=mail_config(postman.port))
    operator(server)
    postman.stop()
    assert forgot(server) < 5
    wait_until(lambda: "is tried again" in server.log(), 10, "the first try")
    with postman:
        postman.wait_for("ann@example.com", "Set another password", 30)
        assert len(postman.letters) == 1


def test_a_refusal_for_now_is_tried_again_and_one_for_good_is_not(new_server):
    with Postman(refuse=["451 come back later"]) as postman:
        server = new_server(config=mail_config(postman.port))
        operator(server)
        forgot(server)
        postman.wait_for("ann@example.com", "Set another password")
        assert server.log().count("is tried again") == 1
        postman.refuse = ["550 no such person"]
        admin(server, "POST", "/accounts", {"email": "gone@example.com", "password": PASSWORD})
        forgot(server, "gone@example.com")
        wait_until(lambda: "is dropped" in server.log(), 20, "the refusal to be told")
        assert server.log().count("is tried again") == 1 and len(postman.letters) == 1


def test_a_mail_server_that_says_nothing_holds_no_request_up(new_server):
    with socket.create_server(("127.0.0.1", 0), backlog=16) as silent:
        server = new_server(config=mail_config(silent.getsockname()[1]))
        ann = operator(server)
        took = [forgot(server) for _ in range(3)]
        assert max(took) < 5, took
        assert ann.call("GET", "/me")["email"] == "ann@example.com"


def test_settings_of_the_mail_that_cannot_be_used_stop_the_start(new_server, tmp_path):
    (tmp_path / "none.pem").write_text("no certificate")
    for more in (f'ca_file = "{tmp_path}/absent.pem"\n', f'ca_file = "{tmp_path}/none.pem"\n'):
        server = new_server(config=mail_config(25, "tls", more), start=False)
        server.spawn()
        assert server.process.wait(20) in (1, 2)
        assert "mail.ca_file" in server.log()
