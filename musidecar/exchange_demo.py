"""`musidecar demo --backend liquibook`: two traders at an exchange, whose leader is killed in the middle of a burst of
orders and comes back; the book is drawn as it is, and it is shown that every order was done once. Exit code 0 only if
everything it claims holds."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from musidecar import exchange_load as load
from musidecar.exchange_load import Event, Trader, Traders
from musidecar.protocols.liquibook.backend import SYMBOLS
from musidecar.protocols.liquibook.driver import Connection
from musidecar.protocols.server import BackendError
from musidecar.testbed import ClusterStatus, Testbed, TestbedError

ORDERS = 2000  # of each trader
PAUSE_S = 0.001
DRAW_S = 0.2
LEVELS = 6
BAR = 24
REJOIN_S = 60.0
TIMEOUT_S = 10.0
SYMBOL = SYMBOLS[0]


def run() -> int:
    """Tells the story on the terminal. Returns the exit code: 0 when all of it held, 1 when not."""
    console = Console()
    console = console if console.is_terminal else Console(width=110)
    try:
        with Testbed(backend="liquibook") as bed:
            return _Demo(bed, console).tell()
    except (TestbedError, TimeoutError, BackendError) as error:
        console.print(f"The demo could not go on: {error}", style="red", markup=False, highlight=False)
        return 1


def requests(trader: str, seed: int, count: int) -> Iterator[str]:
    """Orders around one price, some of them taken back or changed later."""
    dice = random.Random(seed)
    standing: list[str] = []
    for number in range(count):
        name, chance = f"{trader[0]}{number}", dice.random()
        if standing and chance < 0.2:
            original = standing.pop(dice.randrange(len(standing)))
            yield f"CANCEL {trader} {name} {original}"
        elif standing and chance < 0.3:
            original = dice.choice(standing)
            yield f"REPLACE {trader} {name} {original} {dice.randint(5, 60)} {dice.randint(9_990, 10_010)}"
        else:
            side, depth = dice.choice((("BUY", -1), ("SELL", 1))), dice.choice((-1, 1, 2, 3, 4, 5, 6))
            price = 10_000 + side[1] * depth
            standing.append(name)
            yield f"{side[0]} {trader} {name} {SYMBOL} {dice.randint(1, 40)} {price}"


def draw(depth: list[str], title: str) -> Table:
    """A reply to DEPTH, the best prices in the middle."""
    sides: dict[str, list[tuple[int, int]]] = {"BID": [], "ASK": []}
    last = "-"
    for kind, *words in (line.split(" ") for line in depth):
        if kind == "LAST":
            last = words[0]
        else:
            sides[kind].append((int(words[0]), int(words[1])))
    largest = max((quantity for side in sides.values() for _, quantity in side), default=1)
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1), show_header=False)
    for justify in ("right", "right", "left"):
        table.add_column(justify=justify, no_wrap=True, min_width=BAR + 6 if justify == "left" else 8)
    for kind, style in (("ASK", "red"), ("BID", "green")):
        rows = sides[kind][:LEVELS]
        for price, quantity in reversed(rows) if kind == "ASK" else rows:
            bar = "█" * max(1, round(quantity * BAR / largest))
            word = "sell" if kind == "ASK" else "buy"
            table.add_row(word, f"{price / 100:.2f}", Text(f"{bar} {quantity}", style=style))
        if kind == "ASK":
            shown = last if last == "-" else f"{int(last) / 100:.2f}"
            table.add_row("last", shown, "", style="bold")
    return table


class _Demo:
    def __init__(self, bed: Testbed, console: Console) -> None:
        self.bed, self.console = bed, console
        status = bed.status()
        self.leader = status[status.leader or ""]
        nodes = [load.address(node.client_address) for node in status.nodes]
        first = status.nodes.index(self.leader)
        self.traders = [
            Trader(name, nodes, requests(name, seed, ORDERS), first + seed, PAUSE_S)
            for seed, name in enumerate(("alice", "bob"))
        ]
        self.checks: list[tuple[str, bool, str]] = []

    def say(self, text: str = "") -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def check(self, claim: str, held: bool, detail: str) -> None:
        self.checks.append((claim, held, detail))

    def tell(self) -> int:
        before = self.bed.status()
        self._introduce(before)
        with Traders(self.traders) as traders:
            self._show(traders, lambda: traders.answered() >= ORDERS, "the burst begins")
            self.say(f"[bold]Now node {self.leader.id}, the leader, is killed[/]: kill -9 of its sidecar (pid "
                     f"{self.leader.pid}); its liquibookd (pid {self.leader.backend_pid}) dies with it.")
            killed_ns, sent = self.bed.kill(self.leader), traders.answered()
            self._show(traders, lambda: traders.done, "the burst goes on without it")
            traders.join()
        self._took_over(before, killed_ns, sent)
        self.say(f"[bold]Node {self.leader.id} is started again[/], empty, and gets the books from another node.")
        began = time.monotonic()
        self.bed.start_again(self.leader)
        whole = self.bed.wait_status("it counts again", lambda s: s.is_whole, REJOIN_S)
        self.check(f"node {self.leader.id} came back", True, f"after {time.monotonic() - began:.1f} s")
        self._judge(whole)
        return self._verdict()

    def _introduce(self, status: ClusterStatus) -> None:
        nodes = ", ".join(f"node {node.id} at {node.client}" for node in status.nodes)
        self.say("[bold]Three exchanges that are one, and survive the death of any of them[/]")
        self.say()
        self.say(f"Three nodes run on this host: {nodes}.")
        self.say("Each is the matching engine of the package liquibook, a sidecar in front of it. Traders may talk to")
        self.say("any.")
        self.say(f"Node {status.leader} leads: before its engine sees an order, that is in the memory of a majority.")
        self.say(f"Alice trades through node {self.leader.id}, bob through another: {ORDERS} orders, changes and")
        self.say("cancels each, one after the other. Who loses a connection sends again what was not answered.")
        self.say()

    def _took_over(self, before: ClusterStatus, killed_ns: int, sent: int) -> None:
        dead = before.nodes.index(before[self.leader.id])
        first = min((ns for t in self.traders for ns, at in t.acks if at != dead and ns > killed_ns), default=0)
        status = self.bed.wait_status("another node leads", lambda s: s.leader not in (None, self.leader.id))
        late_ms, again = (first - killed_ns) / 1e6, sum(trader.again for trader in self.traders)
        self.say(f"Node {status.leader} leads. The next order was answered {late_ms:.1f} ms after the signal; {sent}")
        self.say(f"had been before; {again} were sent again.")
        self.say()
        total = sum(len(trader.told) for trader in self.traders)
        self.check("every request was answered", total == 2 * ORDERS, f"{total} of {2 * ORDERS}")

    # ---- the book ------------------------------------------------------------------------------------------------

    def _depth(self) -> list[str]:
        for node in self.bed.status().alive:
            with contextlib.suppress(BackendError), Connection(load.address(node.client_address), TIMEOUT_S) as asked:
                return asked.ask(f"DEPTH {SYMBOL} {LEVELS}")
        return []

    def _picture(self, traders: Traders, what: str) -> Group:
        count = Text(f"{traders.answered()} of {2 * ORDERS} requests answered", style="dim")
        return Group(draw(self._depth(), f"{SYMBOL}: {what}"), count)

    def _show(self, traders: Traders, until: Callable[[], bool], what: str) -> None:
        """Draws the book until then, and as it is then."""
        deadline = time.monotonic() + load.END_S
        with Live(console=self.console, transient=True, auto_refresh=False) as live:
            while not until():
                if time.monotonic() > deadline:
                    raise TimeoutError("the traders are not answered")
                if self.console.is_terminal:
                    live.update(self._picture(traders, what), refresh=True)
                    time.sleep(DRAW_S)
                else:
                    time.sleep(PAUSE_S)
        self.console.print(self._picture(traders, what))
        self.say()

    # ---- what is claimed -----------------------------------------------------------------------------------------

    def _judge(self, status: ClusterStatus) -> None:
        depths, differences, fills = {}, {}, 0
        for node in status.nodes:
            with Connection(load.address(node.client_address), TIMEOUT_S) as asked:
                depths[node.id] = asked.ask(f"DEPTH {SYMBOL} 1000")
                events = [event for trader in self.traders for event in trader.events(asked)]
            with Connection(Path(node.backend), TIMEOUT_S) as own:
                self._wait_same(own, status)
                found = load.same_as_one(self.traders, SYMBOLS, own)
            differences[node.id] = [*found, *load.uneven(events), *self._outcomes(events)]
            fills = sum(event.kind == "FILL" for event in events)
        self.say("All orders, put in the order of the log, are given to one exchange that never failed. Beside it:")
        for node_id, trouble in differences.items():
            for line in trouble[:3]:
                self.console.print(f"  node {node_id}: {line}", style="red", markup=False)
        same = len({tuple(depth) for depth in depths.values()}) == 1
        self.check("the same book at every node", same, f"{len(next(iter(depths.values()))) - 1} prices")
        alike = not any(differences.values())
        detail = f"{fills} fills; each node's events and books are those of one exchange that never failed"
        self.check("every fill exactly once, and every order with one outcome", alike, detail)

    @staticmethod
    def _wait_same(own: Connection, status: ClusterStatus) -> None:
        """A follower's exchange is given what is committed a moment later."""
        wanted, deadline = max(node.commit for node in status.nodes), time.monotonic() + TIMEOUT_S
        while int(own.ask("STATE")[0].split(" ")[1]) < wanted and time.monotonic() < deadline:
            time.sleep(0.01)

    def _outcomes(self, events: list[Event]) -> list[str]:
        """Each request that was accepted made its event once."""
        found, made = [], [event.id for event in events if event.kind in ("ACCEPT", "REPLACE")]
        done = {
            request.split(" ")[2] for trader in self.traders for request, reply in trader.told.items()
            if reply[0].startswith("EVENT ") and not request.startswith("CANCEL")
        }  # fmt: skip
        if len(made) != len(set(made)):
            found.append("one order was accepted twice")
        if set(made) != done:
            found.append(f"{len(done - set(made))} accepted orders are missing")
        return found

    def _verdict(self) -> int:
        self.say()
        for claim, held, detail in self.checks:
            mark = "[green]held[/]" if held else "[bold red]FAILED[/]"
            self.say(f"  {mark}  {claim} ({detail})")
        self.say()
        self.say("[dim]Not shown: the log lives in this host's memory; it survives the death of processes, not of the "
                 "host.[/]")  # fmt: skip
        return 0 if all(held for _, held, _ in self.checks) else 1
