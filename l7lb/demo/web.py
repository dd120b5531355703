"""The story that `l7lb demo web` tells. Each step does something real, shows what came of it, and checks it.

What is shown is what the operator's own commands print; what is checked is what the clients saw.
"""

from __future__ import annotations

import http.client
import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from l7lb.control import tables
from l7lb.control.client import AdminError
from l7lb.core.errors import L7lbError
from l7lb.demo import secure
from l7lb.demo.clients import Answer, Browser, Live, Load
from l7lb.demo.cluster import Cluster, Unexpected, expect, wait_for
from l7lb.demo.screen import Screen
from l7lb.demo.showing import perform

SHOP, API = "shop.example.com", "api.example.com"
USERS = [SHOP] * 12 + [API] * 4
BATCH = 300  # requests that are waited for after each event


class Sample(NamedTuple):
    """A request to show; ``pool`` is where it must go, ``status`` what must come."""

    method: str
    host: str
    path: str
    headers: dict[str, str]
    pool: str
    status: int


SAMPLES = (
    Sample("GET", SHOP, "/", {}, "shop", 200),
    Sample("GET", API, "/orders/7", {}, "api", 200),
    Sample("GET", SHOP, "/", {"Cookie": "beta=yes"}, "beta", 200),
    Sample("GET", SHOP, "/old/shoes", {}, "", 308),
    Sample("GET", SHOP, "/x/..//%61DMIN/users", {}, "", 403),
)
SERVERS = {"shop": {"web1", "web2", "web3"}, "api": {"api1", "api2"}, "beta": {"beta1"}, "": {""}}


class Story:
    """The steps, in their order."""

    def __init__(self, screen: Screen, cluster: Cluster) -> None:
        self.screen = screen
        self.cluster = cluster
        self.load = Load(cluster.address, USERS)
        self.live = Live(cluster.address)

    def run(self) -> None:
        """All of it. Raises Unexpected, L7lbError or OSError."""
        self.routes()
        self.stickiness()
        self.secure()
        with self.load, self.live:
            self.begin_load()
            self.death()
            self.drain()
            self.reload()
            self.refused_reload()
            self.sum_up()
        self.records()
        self.end()

    # --- what is shown --------------------------------------------------------------------------------------------

    def show_servers(self, pool: str) -> None:
        """`l7lb servers POOL`."""
        self.screen.command(f"l7lb servers {pool}")
        self.screen.table(tables.servers(self.cluster.rows(pool)))
        self.screen.line()

    def explain(self, sample: Sample) -> dict[str, Any]:
        """What the running node says of a request."""
        found: dict[str, Any] = self.cluster.admin.post(
            "explain",
            protocol="http",
            listener="web",
            method=sample.method,
            url=f"http://{sample.host}{sample.path}",
            headers=list(sample.headers.items()),
        )
        return found

    # --- the steps ------------------------------------------------------------------------------------------------

    def routes(self) -> None:
        """Where requests go."""
        screen = self.screen
        screen.section("Where requests go, and why")
        for number, sample in enumerate(SAMPLES):
            if number:
                screen.line()
            self.sample(sample)

    def sample(self, sample: Sample) -> Answer:
        """Explain a request, send it, and hold the one against the other."""
        found = self.explain(sample)
        browser = Browser(self.cluster.address, sample.host)
        answer = browser.ask(sample.path, sample.method, sample.headers)
        browser.close()
        headers = "".join(f"   {name}: {value}" for name, value in sample.headers.items())
        self.screen.line(self.screen.styled(f"  {sample.method} http://{sample.host}{sample.path}{headers}", "1"))
        matched = next((rule for rule in found["rules"] if rule["matched"]), None)
        if matched is not None:
            why = matched["details"][:-1] or [matched["why"]]
            self.screen.item(f"rule {matched['number']} ({matched['where']}): {'; '.join(why)}", 4)
        reason = f"; {found['why']}" if found["why"] else ""
        self.screen.item(f"{found['outcome']}{reason}", 4, "=> ")
        location = f", Location: {answer.headers['Location']}" if "Location" in answer.headers else ""
        who = f"from {answer.server}" if answer.server else "from l7lb itself"
        what = f"sent: {answer.status} {who}{location}"
        right = answer.status == sample.status and answer.server in SERVERS[sample.pool]
        expect(right and found["pool"] == sample.pool, f"{what}, not {sample.status} of pool {sample.pool or 'none'}")
        if answer.server != found["server"]:
            expect(sample.pool == "shop", f"{what}, not from {found['server']} as explained")
            what += " (servers with equal load take turns)"
        self.screen.good(what)
        return answer

    def stickiness(self) -> None:
        """A user stays on a server."""
        screen = self.screen
        screen.section("A user stays on one server")
        browser = Browser(self.cluster.address, SHOP)
        seen = {browser.ask(f"/cart/{number}").server for number in range(30)}
        expect(len(seen) == 1, f"30 requests of one browser went to {', '.join(sorted(seen))}")
        screen.good(f"30 requests of one browser went to {seen.pop()}, by its cookie L7LB={browser.cookies['L7LB']}")
        browser.close()
        forged = Browser(self.cluster.address, SHOP)
        forged.cookies["L7LB"] = "MTI3LjAuMC4xOjIy"
        answer = forged.ask("/cart")
        expect(answer.status == 200, f"a made-up cookie got {answer.status}")
        screen.good("a made-up cookie leads nowhere: it is replaced by a good one")
        forged.close()
        strangers = self.strangers()
        expect(set(strangers) == SERVERS["shop"], f"new users went to {', '.join(sorted(set(strangers)))} only")
        screen.good(f"{len(strangers)} browsers without a cookie were spread over {', '.join(sorted(set(strangers)))}")

    def secure(self) -> None:
        """TLS, ended at the node and passed through."""
        self.screen.section("TLS: ended here, HTTP/2, and passed through by its name")
        secure.ended_here(self.screen, self.cluster)
        secure.passed_through(self.screen, self.cluster)

    def strangers(self, count: int = 12) -> list[str]:
        """The servers that so many new users get, one after the other."""
        found = []
        for _ in range(count):
            browser = Browser(self.cluster.address, SHOP)
            found.append(browser.ask("/").server)
            browser.close()
        return found

    def begin_load(self) -> None:
        """Users come, and stay until the end."""
        screen = self.screen
        screen.section("Users come, and stay")
        wait_for(lambda: self.live.fault or self.live.echoes > 2, "the WebSocket")
        expect(not self.live.fault, f"the WebSocket failed: {self.live.fault}")
        self.wait_for_load(BATCH)
        sticky = sum(host == SHOP for host in USERS)
        screen.good(
            f"{sticky} browsers with cookies and {len(USERS) - sticky} of the API ask all the time from here on;"
        )
        screen.item("every fourth opens a new connection for each request", 5)
        screen.good(f"a WebSocket to {self.live.server} says something ten times a second")
        self.show_servers("shop")
        self.nobody_noticed("so far", 0)

    def wait_for_load(self, requests: int) -> None:
        """Wait for so many more requests."""
        expect(self.load.more(requests), "the clients are stuck")

    def nobody_noticed(self, what: str, since: int) -> None:
        """No request has failed."""
        screen, load = self.screen, self.load
        if load.failed:
            raise Unexpected(f"{what}: {load.failed} requests failed, such as: {'; '.join(load.failures[:3])}")
        expect(not self.live.fault, f"the WebSocket failed: {self.live.fault}")
        screen.good(f"{what}: {load.requests - since} requests, failed: 0")

    def death(self) -> None:
        """A server is killed, and comes back."""
        screen, cluster, load = self.screen, self.cluster, self.load
        victim = next(name for name in sorted(SERVERS["shop"]) if name != self.live.server)
        screen.section(f"{victim} is killed under load")
        users = sum(server == victim for server in load.users.values())
        mark = load.mark()
        pid = cluster.kill(victim)
        screen.command(f"kill -9 {pid}")
        self.wait_for_load(BATCH)
        wait_for(lambda: cluster.state("shop", victim) == "down", f"{victim} to be seen as down")
        self.show_servers("shop")
        self.nobody_noticed("since the kill", mark.requests)
        moved = load.moves[mark.moves :]
        expect(
            all(before == victim for before, _ in moved),
            f"users of other servers were moved as well: {moved}",
        )
        places = {after for _, after in moved}
        screen.good(f"its {users} users went on at {' and '.join(sorted(places)) or 'no other'}; nobody else was moved")
        screen.say("  (A POST that the server may have processed would not have been repeated: its")
        screen.say("  client gets a 502 and decides.)")
        cluster.start_server(victim)
        wait_for(lambda: cluster.state("shop", victim) == "up", f"{victim} to be up again")
        wait_for(lambda: victim in self.strangers(3), f"new users of {victim}")
        screen.good(f"{victim} was started again, found by its health check, and has new users")

    def drain(self) -> None:
        """A server is drained, and taken back."""
        screen, cluster, load = self.screen, self.cluster, self.load
        server = self.live.server
        screen.section(f"{server} is to be serviced: drain")
        mark, echoes = load.mark(), self.live.echoes
        screen.command(f"l7lb drain shop/{server}")
        screen.item(str(cluster.admin.post("drain", server=f"shop/{server}")["done"]))
        self.wait_for_load(BATCH)
        self.show_servers("shop")
        strangers = set(self.strangers())
        expect(server not in strangers, f"a new user went to {server}, which drains")
        screen.good(f"12 new users went to {' and '.join(sorted(strangers))}")
        since = load.since(mark)
        expect(not since.moves, f"sticky users were moved: {load.moves[mark.moves :]}")
        wait_for(lambda: self.live.fault or self.live.echoes > echoes + 3, "the WebSocket")
        kept = sum(name == server for name in load.users.values())
        screen.good(f"its {kept} sticky users and the WebSocket stay until they end")
        self.nobody_noticed("since the drain began", mark.requests)
        screen.command(f"l7lb undrain shop/{server}")
        screen.item(str(cluster.admin.post("undrain", server=f"shop/{server}")["done"]))

    def reload(self) -> None:
        """A rule changes."""
        screen, cluster, load = self.screen, self.cluster, self.load
        screen.section("The rules change under load: reload")
        sample = Sample("GET", SHOP, "/offers/1", {}, "shop", 200)
        self.sample(sample)
        mark = load.mark()
        text = cluster.config.read_text()
        old, new = '- match: {cookie: {beta: "yes"}}', '- match: {path: "/offers/*"}'
        expect(text.count(old) == 1, f"the demo's configuration has no {old}")
        cluster.config.write_text(text.replace(old, new))
        screen.line()
        screen.item(screen.styled(f"-      {old}", "31"), 0)
        screen.item(screen.styled(f"+      {new}", "32"), 0)
        screen.item("         pool: beta", 0)
        screen.command("l7lb reload")
        screen.item(str(cluster.admin.post("reload")["done"]))
        screen.line()
        self.sample(sample._replace(pool="beta"))
        self.wait_for_load(BATCH)
        self.nobody_noticed("since the change", mark.requests)
        expect(not load.since(mark).moves, "sticky users were moved by a reload")
        screen.good("every sticky user and the WebSocket stayed where they were")

    def refused_reload(self) -> None:
        """A wrong configuration is refused."""
        screen, cluster = self.screen, self.cluster
        screen.line()
        screen.say("Then somebody makes two mistakes:")
        text = cluster.config.read_text()
        cluster.config.write_text(
            text.replace("least-connections", "least-conections").replace("pool: api", "pool: apl")
        )
        screen.command("l7lb reload")
        try:
            cluster.admin.post("reload")
        except AdminError as error:
            screen.item(f"l7lb: {error}")
            for line in error.details:
                screen.item(line.replace(f"{cluster.directory}/", ""))
        else:
            raise Unexpected("a wrong configuration was not refused")
        finally:
            cluster.config.write_text(text)
        screen.line()
        mark = self.load.mark()
        self.wait_for_load(BATCH // 2)
        self.nobody_noticed("the rules before it are in force", mark.requests)
        screen.line("  Both are put right:")
        screen.command("l7lb reload")
        screen.item(str(cluster.admin.post("reload")["done"]))

    def sum_up(self) -> None:
        """What the clients saw in all."""
        screen, load = self.screen, self.load
        screen.section("What the clients saw in all")
        load.__exit__(None, None, None)
        self.live.end()
        for server, count in sorted(load.servers.items()):
            screen.line(f"  {server:6} {count:6} requests")
        screen.line()
        self.nobody_noticed("in all", 0)
        screen.good(f"the WebSocket: {self.live.echoes} messages, all of them came back, over one connection")

    def records(self) -> None:
        """The access log and the metrics."""
        screen, cluster = self.screen, self.cluster
        screen.section("What the operator sees of it")
        path = cluster.directory / "run" / "access.log"

        def records() -> list[dict[str, Any]]:
            lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
            return [json.loads(line) for line in lines]

        # Lines are gathered for a moment before they are written.
        wait_for(lambda: len(records()) >= self.load.requests, "the access log's lines", 5.0)
        found = records()
        retried = [record for record in found if record.get("retries")]
        screen.say(
            f"run/access.log has {len(found)} lines, one a request, such as this one"
            + (", which met the killed server and was tried again:" if retried else ":")
        )
        screen.item(json.dumps((retried or found)[-1]))
        screen.line()
        metrics = cluster.metrics
        expect(metrics is not None, "the demo's configuration has no metrics")
        screen.say(f"http://{metrics}/metrics, some of it:")
        wanted = ("l7lb_listener_requests_total{", "l7lb_server_retries_total{", "l7lb_server_connect_errors_total{")
        for line in self.metrics_text().splitlines():
            if line.startswith(wanted) and not line.endswith(" 0.0"):
                screen.line(f"  {line}")
        expect(cluster.serving(), "l7lb does not serve any more")
        screen.command("l7lb status")
        screen.table(tables.status(cluster.status()))

    def metrics_text(self) -> str:
        """All metrics."""
        assert self.cluster.metrics is not None
        connection = http.client.HTTPConnection(str(self.cluster.metrics), timeout=10)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return text

    def end(self) -> None:
        """The node drains and ends."""
        self.screen.section("The end: SIGTERM drains")
        began = time.monotonic()
        code = self.cluster.end_node()
        expect(code == 0, f"l7lb ended with {code}: {self.cluster.last_lines()}")
        left = self.cluster.alive()
        expect(not left, f"processes are left: {left}")
        self.screen.good(f"all of l7lb's processes ended within {time.monotonic() - began:.1f} s, exit code 0")


def introduce(screen: Screen, cluster: Cluster) -> None:
    """Start the servers and the node, and say so. Raises Unexpected."""
    screen.section("A cluster starts")
    for name, port in cluster.ports.items():
        cluster.start_server(name)
        kind = "a web server with TLS" if name in secure.BANKS else "a web server"
        screen.line(f"  {name:6} {kind} at 127.0.0.1:{port}, process {cluster.servers[name].pid}")
    screen.command("l7lb serve --config l7lb.yaml")
    cluster.start_node()
    cluster.until_ready()
    status = cluster.status()
    workers = ", ".join(str(worker["pid"]) for worker in status["workers"])
    screen.item(f"serves at {cluster.address}: supervisor {status['supervisor']['pid']}, workers {workers}")


def run() -> int:
    """The demo; returns the exit code: 0, or 1 where something was not as it should be."""
    screen = Screen()

    def play(text: str, directory: Path) -> None:
        secure.make_certificates(directory)
        with closing(Cluster(text, directory)) as cluster:
            introduce(screen, cluster)
            Story(screen, cluster).run()

    return perform(screen, "web", (Unexpected, L7lbError, OSError, http.client.HTTPException), play)
