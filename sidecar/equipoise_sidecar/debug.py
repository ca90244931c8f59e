"""Why is this request waiting? Plain tables, as Kubernetes' API Priority and Fairness prints them.

`/debug/fairness/tenants`, `queues`, `requests` and `shadows` there: columns separated by commas, one line a
row. The same rows as plain data for tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import PlainTextResponse

from equipoise_scheduling.tenant_queue import FifoQueue
from equipoise_sidecar.dispatcher import Dispatcher
from equipoise_sidecar.shadow_figures import shadow_rows
from equipoise_sidecar.ticket import Phase, Ticket

MOST_ROWS = 10_000

Row = Mapping[str, str | int | float | None]


def tenant_rows(dispatcher: Dispatcher, now: float) -> list[Row]:
    """Return each open tenant's share: what it is entitled to, got, and asks for."""
    return [
        {
            "tenant": share.tenant,
            "weight": share.weight,
            "queued": share.queued,
            "in_flight": share.in_flight,
            "held": "yes" if share.held else "no",
            "counter": share.counter,
            "entitled_percent": 100 * share.entitled,
            "actual_percent": 100 * share.actual,
            "service_window": share.window.cost,
            "demand": share.demand,
            "lag": share.lag,
            "head_wait_seconds": share.head_wait,
        }
        for share in dispatcher.scheduler.shares(now)
    ]


def queue_rows(dispatcher: Dispatcher, now: float) -> list[Row]:
    """Return each backlogged tenant's queue, and what its head waits for."""
    return [
        {
            "tenant": head.tenant,
            "queued": len(tickets),
            "queued_bytes": sum(ticket.held_bytes for ticket in tickets),
            "head": head.request.id,
            "head_wait_seconds": now - head.request.arrival,
            "expires_in_seconds": _expires_in(dispatcher, head, now),
            "why": _why_head_waits(dispatcher, head, now),
        }
        for head, tickets in sorted(_queues(dispatcher), key=lambda each: each[0].tenant)
    ]


def request_rows(dispatcher: Dispatcher, now: float) -> list[Row]:
    """Return each living request: where it is, and why it waits."""
    heads = {head.tenant: head for head, _ in _queues(dispatcher)}
    ahead: dict[str, int] = {}
    rows: list[Row] = []
    for ticket in sorted(dispatcher.tickets(), key=lambda each: each.request.number):
        request = ticket.request
        if ticket.phase is Phase.QUEUED:
            place = ahead.get(ticket.tenant, 0)
            ahead[ticket.tenant] = place + 1
            if ticket is heads[ticket.tenant]:
                why = _why_head_waits(dispatcher, ticket, now)
            elif isinstance(dispatcher.scheduler.books.tenants[ticket.tenant].queue, FifoQueue):
                why = f"behind {place} of its tenant's"
            else:
                why = f"its tenant's {heads[ticket.tenant].request.id} goes before it"
        else:
            why = _what_it_does(ticket, now)
        rows.append(
            {
                "request": request.id,
                "request_id": ticket.facts.request_id,
                "tenant": ticket.tenant,
                "application": request.application,
                "user": request.user,
                "interaction": request.interaction,
                "call": request.call_index,
                "phase": ticket.phase.value,
                "age_seconds": now - request.arrival,
                "prompt_tokens": request.prompt_tokens,
                "max_tokens": request.max_tokens,
                "predicted_tokens": request.predicted_tokens,
                "sequences": request.sequences,
                "generated": ticket.generated,
                "expires_in_seconds": _expires_in(dispatcher, ticket, now),
                "why": why,
            }
        )
    return rows


def _queues(dispatcher: Dispatcher) -> list[tuple[Ticket, list[Ticket]]]:
    """Return each backlogged tenant's head and all that it has waiting, in the order of arrival."""
    queues: dict[str, list[Ticket]] = {}
    for ticket in sorted(dispatcher.tickets(), key=lambda each: each.request.number):
        if ticket.phase is Phase.QUEUED:
            queues.setdefault(ticket.tenant, []).append(ticket)
    tenants = dispatcher.scheduler.books.tenants
    heads = {tenant: tenants[tenant].queue.head() for tenant in queues}
    return [
        (next(ticket for ticket in tickets if ticket.request is heads[tenant]), tickets)
        for tenant, tickets in queues.items()
    ]


def _expires_in(dispatcher: Dispatcher, ticket: Ticket, now: float) -> float | None:
    if ticket.phase is not Phase.QUEUED:
        return None
    return ticket.request.arrival + dispatcher.policy.config.queue.max_wait_seconds - now


def _why_head_waits(dispatcher: Dispatcher, ticket: Ticket, now: float) -> str:
    scheduler, gate = dispatcher.scheduler, dispatcher.engine.capacity.gate
    if dispatcher.availability.reachable is False:
        return "the engine cannot be reached"
    if dispatcher.availability.pause is not None:
        return "the engine answered 503: next try within 100 ms"
    tenant = scheduler.books.tenants[ticket.tenant]
    if tenant.held:
        return f"its tenant has {tenant.in_flight} in flight, its own limit"
    first = dispatcher.next_up
    if (
        first is not None
        and first.dispatched is None
        and first.outcome is None
        and first is not ticket.request
    ):
        return f"{first.tenant} goes first under {scheduler.algorithm}"
    if dispatcher.engine.capacity.fits(ticket.request, now):
        return "goes next"
    most = gate.max_in_flight
    if most is not None and gate.sequences + ticket.request.sequences > most:
        return f"next: when one of {most} places is free ({gate.sequences} taken)"
    if (why := gate.batching_holds(ticket.request, now)) is not None:
        return f"next: {why}"
    return f"next: when its KV cache fits ({gate.percent:.0f} % of {dispatcher.engine.capacity.kv_tokens} tokens may be planned)"


def _what_it_does(ticket: Ticket, now: float) -> str:
    since = now - (ticket.dispatched_at if ticket.dispatched_at is not None else now)
    if ticket.first_token_at is not None:
        return f"answering for {now - ticket.first_token_at:.1f} s"
    return f"in the engine for {since:.1f} s"


def table(rows: Sequence[Row]) -> str:
    """Print rows as a table with a head; a long one is cut, and says so."""
    if not rows:
        return "nothing\n"
    lines = [", ".join(rows[0])]
    lines += [", ".join(_cell(value) for value in row.values()) for row in rows[:MOST_ROWS]]
    if len(rows) > MOST_ROWS:
        lines.append(f"... and {len(rows) - MOST_ROWS} more")
    widths = _widths(line.split(", ") for line in lines[: MOST_ROWS + 1])
    return "\n".join(_aligned(line.split(", "), widths) for line in lines) + "\n"


def _widths(lines: Iterable[list[str]]) -> list[int]:
    return [max(len(cell) for cell in column) for column in zip(*lines, strict=False)]


def _aligned(cells: list[str], widths: list[int]) -> str:
    padded = [f"{cell + ',':<{width + 1}}" for cell, width in zip(cells[:-1], widths, strict=False)]
    return " ".join([*padded, cells[-1]])


def _cell(value: str | float | None) -> str:
    if value is None or value == "":
        return "-"
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    # a client chooses its request id: it must not forge rows
    return "".join(c if c.isprintable() and c != "," else "_" for c in text)


TABLES: Mapping[str, Callable[[Dispatcher, float], list[Row]]] = {
    "tenants": tenant_rows,
    "queues": queue_rows,
    "requests": request_rows,
    "shadows": lambda dispatcher, now: [*shadow_rows(dispatcher.shadows, now)],
}


def debug_routes(dispatcher: Dispatcher) -> APIRouter:
    """Serve the tables."""
    router = APIRouter()

    @router.get("/debug/fairness/{name}", response_class=PlainTextResponse)
    async def show(name: str, tenant: Annotated[str | None, Query()] = None) -> PlainTextResponse:
        """Print one table; `?tenant=` keeps that tenant's rows."""
        rows = TABLES.get(name)
        if rows is None:
            raise HTTPException(404, f"tables: {', '.join(TABLES)}")
        found = rows(dispatcher, dispatcher.clock())
        return PlainTextResponse(table([row for row in found if tenant in {None, row["tenant"]}]))

    return router
